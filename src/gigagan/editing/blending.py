"""Blending: points between pictures, in style and words (paper 9).

Axes: N pictures, L style layers, S style, T text tokens, D text width, Z latent.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gigagan.errors import ConfigError
from gigagan.models.latents import Latents

Way = Literal["linear", "spherical"]
PARALLEL_RAD = 1e-4  # below it the sines of slerp lose their digits, and the chord is the arc


def blend(points: Sequence[Latents], weights: Sequence[float]) -> Latents:
    """The weighted mean of points of equally many pictures, in w, t_local and the words' share of the attention.

    Weights are 0 or more and sum to 1; a weight of 1 gives that point to the bit. Prompts may have different numbers of
    words: a place where only some have one holds theirs, with their weight's share of the attention, so that nothing
    jumps on the way. Raises ConfigError for other weights, and where only some points hold the upsampler's part.
    """
    # Unstated: words of prompts of different lengths; mean a place, faded by the share of prompts that have it.
    if len(points) != len(weights) or not points:
        raise ConfigError(f"{len(points)} points and {len(weights)} weights came; give one for each")
    if not (min(weights) >= 0 and abs(sum(weights) - 1) < 1e-6):
        raise ConfigError(f"weights {', '.join(f'{x:g}' for x in weights)} came; expected 0 or more, with a sum of 1")
    pairs = list(zip(points, weights, strict=True))
    mask = _sum([p.mask * weight for p, weight in pairs])
    words = _sum([p.t_local * (p.mask * weight)[..., None] for p, weight in pairs])
    t_local = torch.where(mask[..., None] > 0, words / mask[..., None], 0)
    large = [p.enlarged for p in points if p.enlarged is not None]
    if len(large) not in (0, len(points)):
        raise ConfigError("some of the points are drawn larger and some aren't; give all whole, or `base` of all")
    return Latents(
        _sum([p.ws * weight for p, weight in pairs]), t_local, mask, blend(large, weights) if large else None
    )


def interpolate(a: Latents, b: Latents, t: float, way: Way = "linear") -> Latents:
    """From a (t = 0) to b (t = 1): words on a straight line, w on one or on the arc around 0, of each layer its own.

    At both ends to the bit the point there. Raises ConfigError for a t that isn't between, or another way.
    """
    if way not in get_args(Way):
        raise ConfigError(f"way is {way!r}; expected {' or '.join(get_args(Way))}")
    middle = blend([a, b], [1 - _share("t", t), t])
    if way == "linear":
        return middle
    large = interpolate(a.enlarged, b.enlarged, t, way) if a.enlarged and b.enlarged else None
    return replace(middle, ws=slerp(a.ws, b.ws, t), enlarged=large)


def plane(corners: Sequence[Latents], x: float, y: float) -> Latents:
    """The point (x, y) in [0, 1]^2 between four: top left, top right, bottom left, bottom right (bilinear, paper 9).

    Raises ConfigError for a place outside.
    """
    x, y = _share("x", x), _share("y", y)
    return blend(corners, [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y])


def lerp(a: Float[Tensor, "*N S"], b: Float[Tensor, "*N S"], t: float) -> Float[Tensor, "*N S"]:
    """From a (t = 0) to b (t = 1) on a straight line, both to the bit at its ends.

    The mapping takes only the direction of z, so in z this is the way of `slerp`, slower near the ends.
    """
    return a * (1 - t) + b * t


def slerp(a: Float[Tensor, "*N S"], b: Float[Tensor, "*N S"], t: float) -> Float[Tensor, "*N S"]:
    """From a (t = 0) to b (t = 1) on the great arc at an even pace, so that z keeps its length (Shoemake 1985).

    Of z [N, Z] as of w [N, L, S], where lengths differ and go from the one to the other. Opposite vectors have no one
    arc; between them it is the straight line.
    """
    cosine = torch.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1)
    angle = cosine.acos()[..., None]
    near = angle.sin() < PARALLEL_RAD
    sine = torch.where(near, 1.0, angle.sin())
    of_a = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)
    of_b = torch.where(near, t, (t * angle).sin() / sine)
    return a * of_a.to(a.dtype) + b * of_b.to(b.dtype)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; expected 0 to 1")
    return value


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
