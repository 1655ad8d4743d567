"""z tells the style where the caption doesn't (data.style_by_seed): latents that tell one, and M's lesson to heed them.

Axes: B captions, K styles of each, R latents of each pair, N = B K R, Z latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gigagan.data.captions import TEMPLATES, styleless
from gigagan.data.features import CaptionFeatures
from gigagan.models.frozen import TextFeatures
from gigagan.models.generator import TextToStyle

STYLES_EACH = 4
LATENTS_EACH = 4
"""M costs next to nothing beside a picture."""


def telling(z: Float[Tensor, "B Z"], styles: Int[Tensor, " B"]) -> Float[Tensor, "B Z"]:
    """z that tells the style by which of nine equal parts has the largest sum; as it is where that is -1.

    That part changes places with the style's, so that z is distributed as N(0, I) where the style's is the largest.
    Deviation: on a small set a paired term teaches G the mean of all that a caption may mean, and z nothing; so z
    tells G which one of them is meant, and seeds choose.
    """
    count = len(TEMPLATES)
    used = z.shape[1] // count * count  # parts rather than numbers: what many numbers tell is learned sooner
    parts = z[:, :used].unflatten(1, (count, -1))
    largest, rows = parts.sum(dim=2).argmax(dim=1), torch.arange(len(z))
    style = torch.where(styles >= 0, styles, largest)
    told = parts.clone()
    told[rows, largest] = parts[rows, style]
    told[rows, style] = parts[rows, largest]
    return torch.cat([told.flatten(1), z[:, used:]], dim=1)


@dataclass(frozen=True)
class Lesson:
    """Captions without a style, the same with one, and latents that tell it."""

    features: TextFeatures
    """[B + B K]: those without, then those with, K of each in turn."""
    z: Float[Tensor, "N Z"]

    def to(self, device: torch.device) -> "Lesson":
        """On another device."""
        return replace(self, features=self.features.to(device), z=self.z.to(device))


def draw_lesson(
    nouns: Sequence[str], features: CaptionFeatures[TextFeatures], z_dim: int, generator: torch.Generator
) -> Lesson | None:
    """A lesson of what pictures of the emoji set show; None where none is of that set ("")."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    plain, named, styles = list[str](), list[str](), list[int]()
    for noun in filter(None, nouns):
        texts = styleless(noun)
        plain.append(texts[draw(len(texts))])
        for style in torch.randperm(len(TEMPLATES), generator=generator)[:STYLES_EACH].tolist():
            templates = list(TEMPLATES.values())[style]
            named.append(templates[draw(len(templates))].format(X=noun))
            styles.append(style)
    if not plain:
        return None
    told = torch.tensor(styles).repeat_interleave(LATENTS_EACH)
    return Lesson(features(plain + named), telling(torch.randn(len(told), z_dim, generator=generator), told))


def style_distilled(G: TextToStyle, teacher: TextToStyle, lesson: Lesson) -> Tensor:
    """Mean of (M(z, t) - M'(z, t'))^2: t the caption without a style, M' and t' the teacher's of the one that names it.

    Deviation: M learns to heed z from pictures at a hundredth of the rate (docs/log.md); so it is taught by its own
    running average, whose w of captions that name a style is right (Hinton et al. 2015). By itself it would run away
    from its own tail.
    """
    with torch.no_grad():
        named = teacher.text(lesson.features).t_global
        count = len(named) // (1 + STYLES_EACH)
        wanted = teacher.mapping(lesson.z, named[count:].repeat_interleave(LATENTS_EACH, dim=0))
        plain = G.text(lesson.features.first(count)).t_global
    w = G.mapping(lesson.z, plain.repeat_interleave(STYLES_EACH * LATENTS_EACH, dim=0))
    return (w - wanted).square().mean()
