"""Differentiable augmentation of a pyramid, alike on each level: shift, zoom and brightness.

Axes: B batch, C channels, H and W height and width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gigagan.config import AugmentConfig


@dataclass(frozen=True)
class Augmentation:
    """What happens to each picture of a batch."""

    theta: Float[Tensor, "B 2 3"]
    """Affine map of output to input coordinates, both in [-1, 1]."""
    brightness: Float[Tensor, " B"]
    """Added to the pixels, which are in [-1, 1]."""

    # Deviation: the paper trains on billions of pictures and augments none; small sets need it.

    @classmethod
    def draw(cls, cfg: AugmentConfig, batch: int, generator: torch.Generator, device: torch.device) -> "Augmentation":
        """Random values for `batch` pictures; with probability 1 - cfg.prob a picture stays as it is."""
        draws = torch.rand(5, batch, generator=generator) * 2 - 1
        active = (draws[4] < cfg.prob * 2 - 1).to(torch.float32)
        size = torch.exp(draws[0] * active * torch.log1p(torch.tensor(cfg.zoom)))
        theta = torch.zeros(batch, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = size
        theta[:, :, 2] = (draws[1:3] * active * cfg.shift * 2).t()  # coordinates run over 2 units
        return cls(theta.to(device), (draws[3] * active * cfg.brightness).to(device))

    def part(self, part: slice) -> "Augmentation":
        """That of some of the pictures."""
        return Augmentation(self.theta[part], self.brightness[part])

    def __call__(self, pyramid: list[Tensor]) -> list[Tensor]:
        """The augmented pyramid."""
        return [self._level(img) for img in pyramid]

    def _level(self, img: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        grid = F.affine_grid(self.theta, list(img.shape), align_corners=False)
        moved = F.grid_sample(img, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved + self.brightness[:, None, None, None]
