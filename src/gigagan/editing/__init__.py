"""Edits of pictures before they are drawn: pure functions on `Latents`, which `Pipeline.draw` then draws.

pipe = Pipeline.from_pretrained()
z = pipe.z([0, 1])
coarse = pipe.latents(["a 3D render of a rocket"] * 2, z)
fine = pipe.latents(["a black and white icon of a rocket"] * 2, z)
pyramid = pipe.draw(mix(coarse, fine, layer=3))
"""

from gigagan.editing.arithmetic import difference, move
from gigagan.editing.blending import blend, interpolate, lerp, plane, slerp
from gigagan.editing.directions import Directions, principal_directions, style_factors
from gigagan.editing.films import Key, Moment, film, timeline
from gigagan.editing.mixing import mix
from gigagan.editing.projection import project
from gigagan.editing.video import check_video, write_video
from gigagan.metadata import FilmInfo

__all__ = [
    "Directions",
    "FilmInfo",
    "Key",
    "Moment",
    "blend",
    "check_video",
    "difference",
    "film",
    "interpolate",
    "lerp",
    "mix",
    "move",
    "plane",
    "principal_directions",
    "project",
    "slerp",
    "style_factors",
    "timeline",
    "write_video",
]
