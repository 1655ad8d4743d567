"""Blending: points between pictures, in style and words (paper 9).

Axes: N pictures, L style layers, S style, T text tokens, D text width, Z latent.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gigagan.models.latents import Latents

PARALLEL_RAD = 1e-4  # below it the sines of slerp lose their digits, and the chord is the arc


def blend(points: Sequence[Latents], weights: Sequence[float]) -> Latents:
    """The weighted mean of points of equally many pictures, in w, t_local and the words' share of the attention.

    Weights are 0 or more and sum to 1; a weight of 1 gives that point to the bit. Prompts may have different numbers of
    words: a place where only some have one holds theirs, with their weight's share of the attention, so that nothing
    jumps on the way.
    """
    # Unstated: words of prompts of different lengths; mean a place, faded by the share of prompts that have it.
    assert len(points) == len(weights), (len(points), len(weights))
    assert min(weights) >= 0, weights
    assert abs(sum(weights) - 1) < 1e-6, weights
    pairs = list(zip(points, weights, strict=True))
    mask = _sum([p.mask * weight for p, weight in pairs])
    words = _sum([p.t_local * (p.mask * weight)[..., None] for p, weight in pairs])
    t_local = torch.where(mask[..., None] > 0, words / mask[..., None], 0)
    large = [p.enlarged for p in points if p.enlarged is not None]
    assert len(large) in (0, len(points)), "some points are drawn larger and some aren't"
    return Latents(
        _sum([p.ws * weight for p, weight in pairs]), t_local, mask, blend(large, weights) if large else None
    )


def interpolate(a: Latents, b: Latents, t: float) -> Latents:
    """From a (t = 0) to b (t = 1) on a straight line."""
    return blend([a, b], [1 - t, t])


def plane(corners: Sequence[Latents], x: float, y: float) -> Latents:
    """The point (x, y) in [0, 1]^2 between four: top left, top right, bottom left, bottom right (bilinear, paper 9)."""
    return blend(corners, [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y])


def slerp(a: Float[Tensor, "N Z"], b: Float[Tensor, "N Z"], t: float) -> Float[Tensor, "N Z"]:
    """From a (t = 0) to b (t = 1) on the great arc, so that z keeps the length it has in training (Shoemake 1985)."""
    cosine = torch.cosine_similarity(a.double(), b.double(), dim=1).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    near = angle < PARALLEL_RAD
    sine = torch.where(near, 1.0, angle.sin())
    of_a = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)
    of_b = torch.where(near, t, (t * angle).sin() / sine)
    return a * of_a.to(a.dtype) + b * of_b.to(b.dtype)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
