"""Arithmetic in w: what one prompt has and another hasn't, added to a third (paper 9).

Axes: N pictures, L style layers, S style.
"""

import dataclasses

from jaxtyping import Float
from torch import Tensor

from gigagan.models.latents import Latents


def difference(plus: Latents, minus: Latents) -> Float[Tensor, "L S"]:
    """The mean of w(plus) - w(minus) over pairs of pictures: "smiling" minus "neutral"."""
    # Unstated: which w of a prompt; the caller's, and the commands take its conditional mean, which has no seed.
    return (plus.ws - minus.ws).mean(dim=0)


def move(point: Latents, step: Float[Tensor, "L S"] | Float[Tensor, " S"], strength: float = 1.0) -> Latents:
    """w + strength * step at every layer, or a step for each; the words stay. A step of zeros changes nothing."""
    return dataclasses.replace(point, ws=point.ws + strength * step)
