"""Key frames of prompts and seeds to a run of pictures between them, a micro-batch at a time."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from gigagan.editing.blending import interpolate, slerp
from gigagan.errors import ConfigError
from gigagan.models.latents import Latents
from gigagan.pipeline import DEFAULT_PSI, Pipeline

Easing = Literal["linear", "smooth"]


@dataclass(frozen=True)
class Key:
    """A picture that the film passes through."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Moment:
    """A frame: the share t of the way from one key to another."""

    start: Key
    end: Key
    t: float


def num_frames(num_keys: int, steps: int, *, loop: bool) -> int:
    """Frames of a `timeline`, known before it is made. Raises ConfigError as that does."""
    if num_keys < 2:
        raise ConfigError(f"{num_keys} key frame came; give two prompts or two seeds, or more")
    if steps < 1:
        raise ConfigError(f"{steps} frames from a key to the next; expected 1 or more")
    return num_keys * steps if loop else (num_keys - 1) * steps + 1


def timeline(keys: Sequence[Key], steps: int, *, loop: bool, easing: Easing) -> list[Moment]:
    """`steps` frames from each key to the next; then the last key, or, to `loop`, the way back to the first.

    Raises ConfigError for fewer than two keys or no step.
    """
    num_frames(len(keys), steps, loop=loop)
    ends = [*keys[1:], keys[0]] if loop else keys[1:]
    moments = [
        Moment(start, end, _eased(n / steps, easing))
        for start, end in zip(keys, ends, strict=loop)
        for n in range(steps)
    ]
    return moments if loop else [*moments, Moment(keys[-1], keys[-1], 0.0)]


def film(pipe: Pipeline, moments: Sequence[Moment], *, psi: float = DEFAULT_PSI) -> Iterator[UInt8[Tensor, "N 3 H W"]]:
    """The frames, a micro-batch at a time: one pass of the generator each, each prompt encoded once.

    z goes on the great arc between the seeds, and prompts are blended (`interpolate`); at t = 0 a frame is the picture
    of its key, to the bit but in the last part, which may be smaller than others.
    """
    size = pipe.micro_batch
    for start in range(0, len(moments), size):
        part = moments[start : start + size]
        # Elsewhere a part is filled up, for pictures that are the same to the bit in any company. What is compiled
        # would be compiled anew for another size.
        if len(part) < size and not pipe.compiled:
            pipe = copy.copy(pipe)
            pipe.micro_batch = len(part)
        yield pipe.draw(points(pipe, part, psi))[0]


@torch.inference_mode()
def points(pipe: Pipeline, moments: Sequence[Moment], psi: float) -> Latents:
    """The points of the frames, to draw with others."""
    ends = [(pipe.z([m.start.seed]), pipe.z([m.end.seed])) for m in moments]
    same = [m.start.seed == m.end.seed for m in moments]
    z = torch.cat([a if one else slerp(a, b, m.t) for m, one, (a, b) in zip(moments, same, ends, strict=True)])
    first = pipe.latents([m.start.prompt for m in moments], z, psi)
    last = pipe.latents([m.end.prompt for m in moments], z, psi)
    parts = [interpolate(first[n : n + 1], last[n : n + 1], m.t) for n, m in enumerate(moments)]
    return Latents.join(parts)


def _eased(t: float, easing: Easing) -> float:
    """Smooth: slow away from a key and towards the next (3 t^2 - 2 t^3)."""
    return t if easing == "linear" else t * t * (3 - 2 * t)
