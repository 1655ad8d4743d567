"""Edits of pictures before they are drawn: pure functions on `Latents`, which `Pipeline.draw` then draws.

pipe = Pipeline.from_pretrained()
z = pipe.z([0, 1])
coarse = pipe.latents(["a 3D render of a rocket"] * 2, z)
fine = pipe.latents(["a black and white icon of a rocket"] * 2, z)
pyramid = pipe.draw(mix(coarse, fine, layer=3))
"""

from gigagan.editing.arithmetic import difference, move
from gigagan.editing.blend import blend, interpolate, plane, slerp
from gigagan.editing.directions import Directions, principal_directions, style_factors
from gigagan.editing.film import Key, film
from gigagan.editing.mix import mix
from gigagan.editing.project import project

__all__ = [
    "Directions",
    "Key",
    "blend",
    "difference",
    "film",
    "interpolate",
    "mix",
    "move",
    "plane",
    "principal_directions",
    "project",
    "slerp",
    "style_factors",
]
