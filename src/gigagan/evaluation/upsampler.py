"""What an upsampler's pictures are worth: beside the true ones, and beside bicubic and Lanczos enlargements.

Held-out pictures are reduced by Pillow's bicubic filter to the side that the network takes and enlarged again, to their
own size. Axes: B pictures, H and W height and width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from gigagan.config import UpsamplerConfig
from gigagan.data.dataset import CaptionedImages, open_dataset
from gigagan.data.sampling import WHITE, composite
from gigagan.errors import DataError, MissingExtra
from gigagan.evaluation.distances import frechet_distance
from gigagan.evaluation.features import FeatureNetwork, perceptual_distance
from gigagan.evaluation.inception import MAX_SIDE, NUM_SPLITS, Inception, inception_score
from gigagan.evaluation.inception import reduced as at_most
from gigagan.evaluation.photographs import photographs
from gigagan.evaluation.real import usable
from gigagan.models.layers import to_float, to_uint8
from gigagan.upsampling.enlarger import Enlarger, Request, Rows

OURS, WRONG, BICUBIC, LANCZOS = "upsampler", "upsampler, another's caption", "bicubic", "Lanczos"
METHODS = (OURS, WRONG, BICUBIC, LANCZOS)
PHOTOGRAPHS = "photographs"
Method = Callable[[Tensor, int], Tensor]
"""Of somebody else: uint8 [3, h, w] and a factor to uint8 [3, H, W]."""
PROTOCOL = {
    "pictures": "of each size in the set the first --num of the split in an order fixed by its seed, measured apart; "
    "reduced by Pillow's bicubic, enlarged to their own size, none larger than it",
    "PSNR, SSIM": "of RGB on white, range 255; SSIM by torchmetrics",
    "perceptual distance": "EfficientNet-Lite1 maps at strides 2 to 32 of the pictures at full size, unit length over "
    "channels; no loss looks through that network",
    "Frechet distance": "EfficientNet-Lite1 pooled, at full size, float64, against the same true pictures; not FID",
    "consistency": "mean difference of the small picture and the enlarged one reduced again, of 255",
    "caption": "share of pictures that are nearer to the true one (perceptual distance) under their own caption than "
    "under another picture's; chance 50 %",
}
INCEPTION_PROTOCOL = {
    "FID": f"clean-fid's, of the file given, against the same true pictures, both reduced to {MAX_SIDE} px by Pillow's "
    "Lanczos where they are larger",
    "Inception score": f"the same file's classes, resized and without bias as in StyleGAN2-ADA, {NUM_SPLITS} parts",
}


@dataclass(frozen=True)
class Pair:
    """A true picture, the small one, and what to say of it."""

    caption: str
    real: UInt8[Tensor, "3 H W"]
    low: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class Scores:
    """Of one method, over all pictures."""

    psnr: float
    ssim: float
    perceptual: float
    frechet: float
    consistency: float
    fid: float | None = None
    """Where there is an Inception network, as what follows."""
    inception_score: float | None = None


@dataclass(frozen=True)
class Measured:
    """All figures, and the first pictures, a row each: small (enlarged by bicubic), upsampler, true."""

    num: int
    scores: dict[str, Scores]
    own_caption_wins: float
    rows: list[list[Image.Image]]
    captions: list[str]


def held_out(place: Path, *, split: str, cfg: UpsamplerConfig, num: int) -> list[Pair]:
    """At most `num` pairs of each size in a data set's split, or of the photographs where `place` is PHOTOGRAPHS."""
    if str(place) == PHOTOGRAPHS:
        return [reduced(one.caption, one.image, cfg.input_resolution) for one in photographs()[:num]]
    data = open_dataset(place, split=split, resolution=cfg.resolution, enlarge=False)
    return pairs(data, side=cfg.input_resolution, num=num)


def pairs(data: CaptionedImages, *, side: int, num: int) -> list[Pair]:
    """Held-out pictures whose own side is a power of two times `side`, at most `num` of each size, the largest first.

    Raises DataError where there are none.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    found: dict[int, list[Pair]] = {}
    for _, sample in usable(data, order):
        real = composite(sample.image, WHITE)
        factor, rest = divmod(real.shape[0], side)
        if rest or real.shape[0] != real.shape[1] or factor < 2 or factor & (factor - 1):
            continue
        alike = found.setdefault(factor, [])
        if len(alike) < num:
            alike.append(reduced(sample.captions[0].text, real, side))
    kept = [pair for factor in sorted(found, reverse=True) if len(found[factor]) > 1 for pair in found[factor]]
    if not kept:
        raise DataError(f"{data.path}: holds fewer than 2 pictures of {2 * side} px or a power of two more")
    return kept


def by_size(items: Sequence[Pair]) -> dict[int, list[Pair]]:
    """Pairs by the side of the true picture, in the order in which they come."""
    found: dict[int, list[Pair]] = {}
    for item in items:
        found.setdefault(item.real.shape[1], []).append(item)
    return found


def reduced(caption: str, real: UInt8[np.ndarray, "H H 3"], side: int) -> Pair:
    """A picture and the small one of it."""
    low = np.asarray(Image.fromarray(real).resize((side, side), Image.Resampling.BICUBIC))
    return Pair(caption, _planes(real), _planes(low))


def measure(
    items: Sequence[Pair],
    enlarger: Enlarger,
    network: FeatureNetwork,
    *,
    others: Mapping[str, Method] | None = None,
    inception: Inception | None = None,
    shown: int = 8,
    progress: Callable[[int], object] = lambda pictures: None,
) -> Measured:
    """All figures of all pictures, of `others` as well; the first `shown` are kept.

    Raises MissingExtra without torchmetrics.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        raise MissingExtra("torchmetrics", "eval") from None
    others = others or {}
    methods = (*METHODS, *others)
    values: dict[str, list[tuple[float, float, float, float]]] = {method: [] for method in methods}
    pooled: dict[str, list[Tensor]] = {method: [] for method in (*methods, "real")}
    judged: dict[str, list[tuple[Tensor, Tensor]]] = {method: [] for method in (*methods, "real")}
    rows: list[list[Image.Image]] = []
    for number, item in enumerate(items):
        target = network.network(to_float(item.real[None]), min_res=0)
        pooled["real"].append(target.pooled.cpu())
        other = items[(number + len(items) // 2) % len(items)].caption
        made = {method: _enlarged(method, item, enlarger, other) for method in METHODS}
        made |= {name: method(item.low, item.real.shape[1] // item.low.shape[1]) for name, method in others.items()}
        if inception is not None:
            for method, picture in {**made, "real": item.real}.items():
                judged[method].append(_judged(inception, picture))
        for method, picture in made.items():
            seen = network.network(to_float(picture[None]), min_res=0)
            pooled[method].append(seen.pooled.cpu())
            a, b = picture[None].double(), item.real[None].double()
            psnr = 10 * float(torch.log10(255**2 / (a - b).square().mean().clamp(min=1e-9)))
            near = ssim(a.float(), b.float(), data_range=255.0)
            assert isinstance(near, Tensor)
            distance = float(perceptual_distance(seen, target))
            values[method].append((psnr, float(near), distance, _consistency(picture, item.low)))
        if len(rows) < shown:
            rows.append([_image(made[BICUBIC]), _image(made[OURS]), _image(item.real)])
        progress(1)
    return _summary(values, pooled, judged, rows, [one.caption for one in items])


def _judged(inception: Inception, picture: UInt8[Tensor, "3 H W"]) -> tuple[Tensor, Tensor]:
    """Features [1, P] and classes [1, C]."""
    pixels = [at_most(picture.permute(1, 2, 0).contiguous().numpy())]
    return inception.features(pixels), inception.probabilities(pixels)


def _summary(
    values: dict[str, list[tuple[float, float, float, float]]],
    pooled: dict[str, list[Tensor]],
    judged: dict[str, list[tuple[Tensor, Tensor]]],
    rows: list[list[Image.Image]],
    captions: list[str],
) -> Measured:
    real = torch.cat(pooled["real"])
    scores = {}
    for method in values:
        psnr, near, perceptual, consistency = (float(np.mean(column)) for column in zip(*values[method], strict=True))
        frechet = frechet_distance(torch.cat(pooled[method]), real)
        fid = score = None
        if judged[method]:
            features, classes = (torch.cat(parts) for parts in zip(*judged[method], strict=True))
            fid = frechet_distance(features, torch.cat([features for features, _ in judged["real"]]))
            score = inception_score(classes)
        scores[method] = Scores(psnr, near, perceptual, frechet, consistency, fid, score)
    wins = np.mean([own[2] < other[2] for own, other in zip(values[OURS], values[WRONG], strict=True)])
    return Measured(len(real), scores, float(wins), rows, captions[: len(rows)])


def _enlarged(method: str, item: Pair, enlarger: Enlarger, other: str) -> UInt8[Tensor, "3 H W"]:
    side = item.real.shape[1]
    if method in (BICUBIC, LANCZOS):
        how = Image.Resampling.BICUBIC if method == BICUBIC else Image.Resampling.LANCZOS
        return _planes(np.asarray(_image(item.low).resize((side, side), how)))
    prompt = "" if enlarger.text_encoder.name == "none" else (item.caption if method == OURS else other)
    bands = enlarger.bands(Rows(to_float(item.low[None])[0]), side // item.low.shape[1], Request(prompt))
    return to_uint8(torch.cat(list(bands), dim=1)[None])[0]


def _consistency(picture: UInt8[Tensor, "3 H W"], low: UInt8[Tensor, "3 h w"]) -> float:
    again = _image(picture).resize((low.shape[2], low.shape[1]), Image.Resampling.BICUBIC)
    return float((_planes(np.asarray(again)).double() - low.double()).abs().mean())


def _planes(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _image(planes: UInt8[Tensor, "3 H W"]) -> Image.Image:
    return Image.fromarray(planes.permute(1, 2, 0).contiguous().numpy())


def table(measured: Measured) -> str:
    """A row a method, and the share of captions."""
    judged = all(s.fid is not None for s in measured.scores.values())
    heading = f"{'':32}{'PSNR':>8}{'SSIM':>8}{'perceptual':>12}{'Frechet':>10}{'consistency':>13}"
    lines = [heading + (f"{'FID':>9}{'IS':>8}" if judged else "")]
    lines += [
        f"{method:32}{s.psnr:>8.2f}{s.ssim:>8.3f}{s.perceptual:>12.4f}{s.frechet:>10.1f}{s.consistency:>13.2f}"
        + (f"{s.fid:>9.2f}{s.inception_score:>8.2f}" if judged else "")
        for method, s in measured.scores.items()
    ]
    return "\n".join([*lines, f"own caption nearer than another's: {100 * measured.own_caption_wins:.1f} %"])
