"""Harmless damage to real pictures, so that the readers don't stumble over a blurred or noisy one."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

MAX_SHIFT = 0.08
MAX_ZOOM = 0.15
MAX_BLUR = 2.0
"""Pictures lose detail by being shrunk by up to this factor and enlarged again."""
MAX_NOISE = 0.08
MAX_GAIN = 0.15


def distort(images: UInt8[Tensor, "B 3 H W"], generator: torch.Generator) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures shifted, zoomed, blurred, with noise fine and coarse, lighter or darker; each by amounts of its own."""
    x = images.float() / 127.5 - 1
    B, side = len(x), x.shape[-1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + MAX_ZOOM * uniform(B)
    theta[:, :, 2] = 2 * MAX_SHIFT * uniform(B, 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = _blur(x, 1 + (MAX_BLUR - 1) * uniform(1).abs().item())
    amount = MAX_NOISE * uniform(B, 2, 1, 1, 1).abs()
    coarse = F.interpolate(torch.randn(B, 3, 8, 8, generator=generator), size=(side, side), mode="bilinear")
    x = x + amount[:, 0] * torch.randn(x.shape, generator=generator) + amount[:, 1] * coarse
    x = x * (1 + MAX_GAIN * uniform(B, 1, 1, 1)) + 0.5 * MAX_GAIN * uniform(B, 1, 1, 1)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _blur(x: Float[Tensor, "B 3 H W"], factor: float) -> Float[Tensor, "B 3 H W"]:
    size = x.shape[2:]
    small = [max(4, round(n / factor)) for n in size]
    x = F.interpolate(x, size=small, mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
