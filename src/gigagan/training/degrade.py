"""How a picture becomes the small one that an upsampler is given: reduced, perhaps spoilt as photographs are, noisy.

Axes: B batch, H and W of the picture, h and w of the small one.
"""

import io
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from gigagan.config import DegradeConfig
from gigagan.models.layers import to_float, to_uint8
from gigagan.models.upsampler import with_level

BEST_JPEG = 95
BLUR_TAPS = 9


@dataclass(frozen=True)
class Degradation:
    """What happens to each picture of a batch."""

    filters: tuple[str, ...]
    choice: Int[Tensor, " B"]
    """Which of the filters reduces it."""
    spoilt: Bool[Tensor, " B"]
    """Whether it also loses what photographs lose."""
    blur: Float[Tensor, " B"]
    """Standard deviation in pixels of the small picture."""
    sensor: Float[Tensor, " B"]
    """Standard deviation of noise that the network isn't told of."""
    quality: Int[Tensor, " B"]
    """Of JPEG."""
    level: Float[Tensor, " B"]
    """Standard deviation of the noise that it is told of."""
    noise: Float[Tensor, "B 2 3 h w"]
    """Unit noise, of the sensor and of the augmentation."""

    @classmethod
    def draw(
        cls, cfg: DegradeConfig, noise_max: float, batch: int, side: int, generator: torch.Generator
    ) -> "Degradation":
        """Random values for `batch` pictures, small ones of that side; on the CPU."""
        draws = torch.rand(6, batch, generator=generator)
        return cls(
            filters=cfg.filters,
            choice=(draws[0] * len(cfg.filters)).long(),
            spoilt=draws[1] < cfg.prob,
            blur=draws[2] * cfg.blur,
            sensor=draws[3] * cfg.noise,
            quality=(cfg.jpeg_quality + draws[4] * (BEST_JPEG + 1 - cfg.jpeg_quality)).long(),
            # Unstated: the strength of the noise augmentation; uniform from none to noise_max.
            level=draws[5] * noise_max,
            noise=torch.randn(batch, 2, 3, side, side, generator=generator),
        )

    def part(self, part: slice) -> "Degradation":
        """That of some of the pictures."""
        tensors = {f.name: getattr(self, f.name)[part] for f in fields(self) if f.name != "filters"}
        return Degradation(self.filters, **tensors)

    def __call__(self, img: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 4 h w"]:
        """The small pictures as the network is given them, with the level of their noise."""
        side = self.noise.shape[-1]
        picture = to_float(img.cpu())
        low = torch.stack(
            [
                reduced(one[None], side, self.filters[int(choice)])[0]
                for one, choice in zip(picture, self.choice, strict=True)
            ]
        )
        for b in self.spoilt.nonzero().flatten().tolist():
            low[b] = self._spoilt(low[b : b + 1], b)[0]
        # Unstated: the form of the noise; Gaussian, added to the pixels.
        noisy = low + self.level[:, None, None, None] * self.noise[:, 1]
        return with_level(noisy, self.level).to(img.device)

    def _spoilt(self, low: Float[Tensor, "1 3 h w"], b: int) -> Float[Tensor, "1 3 h w"]:
        """Blurred, with a sensor's noise, through JPEG: in the order in which a camera does it."""
        low = _blurred(low, float(self.blur[b])) + self.sensor[b] * self.noise[b : b + 1, 0]
        buffer = io.BytesIO()
        pixels = to_uint8(low)[0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(self.quality[b]))
        return to_float(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None])


def reduced(img: Float[Tensor, "B 3 H W"], side: int, how: str) -> Float[Tensor, "B 3 h w"]:
    """A square picture at a smaller side, by an antialiased filter (area, bilinear or bicubic)."""
    if how == "area":
        return F.avg_pool2d(img, img.shape[-1] // side)
    return F.interpolate(img, size=(side, side), mode=how, align_corners=False, antialias=True).clamp(-1, 1)


def _blurred(img: Float[Tensor, "1 3 h w"], sigma: float) -> Float[Tensor, "1 3 h w"]:
    """Gaussian blur, edges replicated."""
    taps = torch.arange(BLUR_TAPS, dtype=torch.float32) - BLUR_TAPS // 2
    kernel = torch.exp(-0.5 * (taps / max(sigma, 1e-3)).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(img, [BLUR_TAPS // 2] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
