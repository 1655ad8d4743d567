"""Seams of the upsampler, on photographs and on noise: in parts against in one piece, and the gradients' spectrum.

    python benchmarks/seams.py MODEL [--num 12]

Each square of 256 px is drawn at eight times its side twice: in the least blocks and in tiles of 256 px, and whole.
A seam where windows or tiles meet makes the picture change more there than elsewhere, which is a peak at their
period in the spectrum of its gradients' sizes; told is the spectrum there over that of its neighbors. The input's own
pixels, eight wide, are such a period in whatever enlarges them; they are told apart, beside bicubic's.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.evaluation.photographs import photographs
from gigagan.models.layers import to_float, to_uint8
from gigagan.pipeline import Pipeline
from gigagan.upsampling import enlarger as module
from gigagan.upsampling.enlarger import Enlarger, Request, Rows

TILE = 256
PARTS = {"WHOLE_PIXELS": 1, "ATTEND_PIXELS": 1, "LOOK_SIDE": 64, "TILE": TILE}
WHOLE = {"WHOLE_PIXELS": 1 << 40, "TILE": 1 << 40}
NEIGHBORS = (-3, -2, 2, 3)
"""Bins beside a harmonic; harmonics are eight apart."""


def drawn(enlarger: Enlarger, img: Tensor, sizes: dict[str, int]) -> Tensor:
    """uint8 [3, H, W] at the network's factor, in parts of these sizes."""
    for name, value in sizes.items():
        setattr(module, name, value)
    made = torch.cat([band.clone() for band in enlarger.bands(Rows(img), enlarger.factor, Request(seed=1))], dim=1)
    return to_uint8(made[None])[0]


def spectrum(img: Tensor) -> Tensor:
    """Mean over rows and columns of the spectrum of |x_{i+1} - x_i|, [F]; the sides are a multiple of the tile."""
    gray = img.float().mean(dim=0)
    found = []
    for x in (gray, gray.T):
        gradient = (x - x.roll(1, dims=1)).abs()[:, 1:]  # the first one leads around the picture
        gradient = torch.cat([gradient.mean(dim=1, keepdim=True), gradient], dim=1)
        found.append(torch.fft.rfft(gradient - gradient.mean(dim=1, keepdim=True)).abs().mean(dim=0))
    return torch.stack(found).mean(dim=0)


def peaks(total: Tensor, side: int, factor: int) -> tuple[Tensor, Tensor]:
    """At each harmonic of the tiles' period the spectrum over its neighbors' mean; and at the input's pixels."""
    step = side // TILE
    places = torch.arange(step, len(total) - step, step)
    found = total[places] / torch.stack([total[places + n] for n in NEIGHBORS]).mean(dim=0)
    pixels = places % (side // factor) == 0
    return found[~pixels], found[pixels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory with an upsampler, or emoji")
    parser.add_argument("--num", type=int, default=12, help="pictures of each kind [12]")
    arguments = parser.parse_args()
    enlarger = Pipeline.from_pretrained(arguments.model).enlarger
    assert enlarger is not None, "this model has no upsampler"
    photos = [to_float(torch.from_numpy(p.image).permute(2, 0, 1)) for p in photographs()[: arguments.num]]
    draw = torch.Generator().manual_seed(0)
    noise = [torch.rand(3, 256, 256, generator=draw) * 2 - 1 for _ in photos]
    for kind, pictures in {"photographs": photos, "noise": noise}.items():
        most, totals = 0, {"parts": 0, "whole": 0, "bicubic": 0}
        for img in pictures:
            made = {name: drawn(enlarger, img, sizes) for name, sizes in (("parts", PARTS), ("whole", WHOLE))}
            most = max(most, int((made["parts"].int() - made["whole"].int()).abs().max()))
            made["bicubic"] = to_uint8(F.interpolate(img[None], scale_factor=enlarger.factor, mode="bicubic"))[0]
            totals = {name: totals[name] + spectrum(made[name]) for name in totals}
        side = made["parts"].shape[1]
        print(f"{len(pictures)} {kind}, {side} px: parts against whole at most {most} of 255")
        for name, total in totals.items():
            found, pixels = peaks(torch.as_tensor(total), side, enlarger.factor)
            print(
                f"  {name}: at the tiles' period over its neighbors: mean {found.mean():.3f}, first {found[0]:.3f}, "
                f"most of {len(found)} {found.max():.3f}; at the input's pixels, most {pixels.max():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
