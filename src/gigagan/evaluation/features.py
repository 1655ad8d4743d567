"""What pictures are measured by: EfficientNet-Lite1, frozen. Losses use Lite0 and never this one.

Pictures are uint8 [0, 255]. Axes: B pictures, C channels, H and W height and width, K features of cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from gigagan import losses
from gigagan.data.sampling import WHITE, composite
from gigagan.models import frozen

SIDE = 128
"""Every picture is brought to this side: a 64 px one read at 64 tells far less (data.md: R@1 0.42 against 0.69)."""
CELLS = 2
"""The maps at strides 16 and 32 are averaged over this many cells a side: what is where, roughly."""
GRAM_CHANNELS = 24
"""Maps with no more channels also give covariances: those at strides 2 and 4."""
EXTREME_CHANNELS = 40
"""Maps with no more channels also give extremes: those at strides 2, 4 and 8."""
LEVELS = 6
"""Of each color channel in the palette."""
NAME = f"EfficientNet-Lite1 (ImageNet), pooled 1280, pictures at {SIDE} px by antialiased bilinear"
PERCEPTUAL_NAME = f"EfficientNet-Lite1 maps at strides 2 to 32, unit length over channels, pictures at {SIDE} px"
FEATURES_VERSION = 3
"""Raised with every change here that moves a number; cached features of another version aren't read."""


@dataclass(frozen=True)
class Features:
    """Three vectors a picture, on the CPU."""

    pooled: Float[Tensor, "B P"]
    """For distances between sets."""
    cells: Float[Tensor, "B K"]
    """What is where, for the readers of concept and caption."""
    texture: Float[Tensor, "B M"]
    """How it is drawn, for the reader of style: statistics of the finer maps, wherever in the picture."""

    @classmethod
    def join(cls, parts: "Sequence[Features]") -> "Features":
        """One after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, index: Tensor | slice) -> "Features":
        return Features(self.pooled[index], self.cells[index], self.texture[index])

    def __len__(self) -> int:
        return len(self.pooled)


class FeatureNetwork:
    """uint8 pictures of any side to features, without gradient."""

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)

    @torch.no_grad()
    def run(self, images: UInt8[Tensor, "B 3 H W"]) -> frozen.ImageFeatures:
        """All maps and the pooled vector."""
        img = images.to(self.device, torch.float32) / 127.5 - 1
        if img.shape[2:] != (SIDE, SIDE):
            img = F.interpolate(img, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return self.network(img.contiguous(memory_format=torch.channels_last))

    def __call__(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """The vectors of each picture."""
        return self.vectors(self.run(images), images)

    @staticmethod
    def vectors(seen: frozen.ImageFeatures, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """The vectors out of a pass, rounded to half precision as the cache holds them."""
        cells = [F.adaptive_avg_pool2d(x, CELLS).flatten(1) for x in seen.maps[3:]]
        texture = [part for x in seen.maps[:4] for part in _statistics(x)]
        texture.append(palette(images).to(seen.pooled.device))
        vectors = (seen.pooled, torch.cat(cells, dim=1), torch.cat(texture, dim=1))
        return Features(*(vector.half().float().cpu() for vector in vectors))


def _statistics(x: Float[Tensor, "B C H W"]) -> list[Tensor]:
    """Mean and deviation of each channel, and of few channels the roots of their covariances (Gatys et al. 2016)."""
    values = x.flatten(2)
    mean = values.mean(dim=2, keepdim=True)
    centered = values - mean
    statistics = [mean[..., 0], centered.square().mean(dim=2).sqrt()]
    if x.shape[1] <= GRAM_CHANNELS:
        row, column = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
        gram = (centered @ centered.mT / values.shape[2])[:, row, column]
        statistics.append(gram.sign() * gram.abs().sqrt())
    if x.shape[1] <= EXTREME_CHANNELS:
        statistics += [values.amax(dim=2), values.amin(dim=2)]
    return statistics


def palette(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B M"]:
    """Roots of the shares of a picture in each of LEVELS^3 colors; rows sum to 1 when squared."""
    levels = (images.float() * ((LEVELS - 1) / 255)).round().long()
    color = (levels[:, 0] * LEVELS**2 + levels[:, 1] * LEVELS + levels[:, 2]).flatten(1)
    shares = torch.zeros(len(images), LEVELS**3, device=images.device)
    shares.scatter_add_(1, color, torch.full(color.shape, 1 / color.shape[1], device=images.device))
    return shares.sqrt()


def perceptual_distance(a: frozen.ImageFeatures, b: frozen.ImageFeatures) -> Float[Tensor, " B"]:
    """`losses.perceptual_distance` over all maps, on the CPU."""
    return losses.perceptual_distance(a.maps, b.maps).cpu()


def as_batch(images: Sequence[NDArray[np.uint8]]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures [H, W, 3] or [H, W, 4] of one size as a batch; what is transparent becomes white."""
    return torch.from_numpy(np.stack([composite(image, WHITE) for image in images])).permute(0, 3, 1, 2)
