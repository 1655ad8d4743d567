"""M taught by itself that z tells the style where a caption names none (train.distill_mapping_kimg).

Deviation: with a paired loss G learns to leave z out long before M hears it, and no loss on pictures brings it back
(docs/log.md). M alone learns it within minutes: of a caption without a style, under a z that tells one, it is to give
what it gave of the caption that names that style.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from gigagan import dist
from gigagan.data.dataset import CaptionedImages
from gigagan.data.features import CaptionFeatures
from gigagan.data.sampling import STYLE_INDEX
from gigagan.errors import DataError
from gigagan.models.frozen import TextFeatures
from gigagan.models.generator import Generator, MappingNetwork
from gigagan.training.micro_batches import telling
from gigagan.training.state import TrainState

log = logging.getLogger(__name__)

STEPS = 20_000
BATCH = 256
"""Pairs of a thing and a style a step; as many captions that name a style are to stay what they were."""
RATE = 0.004
WARM_UP = 200
FALLS_FROM = 0.6
"""Share of the steps after which the rate falls, to a fiftieth."""
KEPT_WEIGHT = 2.0
BACKGROUND_SHARE = 0.25
"""Of the captions that are to stay: those that name a background as well."""
AVERAGE_DECAY = 0.99
TEXTS = 256
"""Captions that T reads at once."""


@dataclass(frozen=True)
class Lessons:
    """Things in styles, by the captions of the training split; numbers are places in `texts`."""

    texts: list[str]
    named: Int[Tensor, "P K"]
    """Of each pair captions that name the style, the first ones again where there are fewer than K."""
    plain: Int[Tensor, "P J"]
    """Captions of the thing alone."""
    style: Int[Tensor, " P"]
    background: Int[Tensor, " B"]
    """Captions that name a style and a background."""


def distill_mapping(
    state: TrainState, dataset: CaptionedImages, features: CaptionFeatures[TextFeatures], stop: Callable[[], bool]
) -> None:
    """Teach M, of G and of its average, once the run has come to train.distill_mapping_kimg; from then on M is held.

    T and all else stay as they are. Where `stop` says so it ends, and is begun anew when the run goes on. Raises
    DataError where the set lacks captions with and without styles.
    """
    kimg = state.cfg.train.distill_mapping_kimg
    if not kimg or state.taught or state.nimg < 1000 * kimg:
        return
    log.info("at %.3f kimg M is taught by itself, for some minutes", state.nimg / 1000)
    lessons = read_lessons(dataset)
    assert isinstance(state.G_ema, Generator)
    teacher = state.G_ema.mapping
    with torch.no_grad():
        t = torch.cat([
            state.G_ema.text(features(lessons.texts[start : start + TEXTS]).to(state.device)).t_global
            for start in tqdm(range(0, len(lessons.texts), TEXTS), desc="captions of M", disable=None)
        ])  # fmt: skip
    draw = torch.Generator().manual_seed(state.cfg.train.seed)
    alone = dist.world_size() == 1  # else one rank would end and the others not
    taught = taught_mapping(teacher, lessons, t.float(), state.cfg.generator.z_dim, draw, lambda: alone and stop())
    if taught is None:
        return
    dist.add_up(list(taught.parameters()))  # ranks differ by rounding
    with torch.no_grad():
        for parameter in taught.parameters():
            parameter.div_(dist.world_size())
    for network in (state.G, state.G_ema):
        network.mapping.load_state_dict(taught.state_dict())
    state.taught = True


def taught_mapping(
    teacher: MappingNetwork,
    lessons: Lessons,
    t: Float[Tensor, "Q D"],
    z_dim: int,
    draw: torch.Generator,
    stop: Callable[[], bool] = lambda: False,
) -> MappingNetwork | None:
    """M after the lessons, its running average; None where `stop` ended them. `t` are the texts' sentence vectors."""
    student, average = (copy.deepcopy(teacher) for _ in range(2))
    student.requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE, betas=(0.9, 0.99))
    errors: list[Tensor] = []
    for step in tqdm(range(STEPS), desc="M alone", disable=None):
        if stop():
            return None
        falling = max(step - FALLS_FROM * STEPS, 0) / ((1 - FALLS_FROM) * STEPS)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, max(1 - falling, 0.02))
        z, given, wanted_of = _batch(lessons, t, z_dim, draw)
        with torch.no_grad():
            wanted = teacher(z, wanted_of)
        error = (student(z, given) - wanted).square().mean(dim=1)
        optimizer.zero_grad()
        (error[:BATCH].mean() + KEPT_WEIGHT * error[BATCH:].mean()).backward()
        optimizer.step()
        errors.append(error[:BATCH].mean().detach())
        torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - AVERAGE_DECAY)
    tenth = max(STEPS // 10, 1)
    first, last = (float(torch.stack(part).mean()) for part in (errors[:tenth], errors[-tenth:]))
    log.info("M was taught that z tells the style: square error of w %.3f, in the end %.3f", first, last)
    return average


def _batch(
    lessons: Lessons, t: Float[Tensor, "Q D"], z_dim: int, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """z, sentence vectors that M is given, and those of which the old M says what it is to give: [2 BATCH, ...]."""

    def picked(count: int) -> Tensor:
        return torch.randint(count, (BATCH,), generator=draw)

    pair, kept = picked(len(lessons.style)), picked(len(lessons.style))
    z = torch.randn(2 * BATCH, z_dim, generator=draw)
    z[:BATCH] = telling(z[:BATCH], lessons.style[pair])
    plain = lessons.plain[pair, picked(lessons.plain.shape[1])]
    named = lessons.named[pair, picked(lessons.named.shape[1])]
    stays = lessons.named[kept, picked(lessons.named.shape[1])]
    if len(lessons.background):
        swapped = torch.rand(BATCH, generator=draw) < BACKGROUND_SHARE
        stays = torch.where(swapped, lessons.background[picked(len(lessons.background))], stays)
    given, wanted_of = torch.cat([plain, stays]), torch.cat([named, stays])
    return z.to(t.device), t[given.to(t.device)], t[wanted_of.to(t.device)]


def read_lessons(dataset: CaptionedImages) -> Lessons:
    """Of every sample whose style is one of the emoji set's and that has captions with and without it.

    Raises DataError where there is none.
    """
    place: dict[str, int] = {}
    named, plain, styles, background = [], [], [], []
    for index in tqdm(range(len(dataset)), desc="lessons of M", disable=None):
        try:
            record = dataset.source.read(index)
        except DataError:
            continue
        style = STYLE_INDEX.get(str(record.meta.get("style")), -1)
        whole = [caption for caption in record.captions if caption.background is None]
        with_style = [place.setdefault(c.text, len(place)) for c in whole if c.styled]
        without = [place.setdefault(c.text, len(place)) for c in whole if not c.styled]
        if style < 0 or not with_style or not without:
            continue
        background += [place.setdefault(c.text, len(place)) for c in record.captions if c.background is not None]
        named.append(with_style)
        plain.append(without)
        styles.append(style)
    if not styles:
        raise DataError(
            f"{dataset.path}: has no captions with and without a style of the emoji set, which "
            "train.distill_mapping_kimg teaches by; set it to 0"
        )
    return Lessons(list(place), _even(named), _even(plain), torch.tensor(styles), torch.tensor(background))


def _even(rows: list[list[int]]) -> Int[Tensor, "P K"]:
    longest = max(map(len, rows))
    return torch.tensor([[row[k % len(row)] for k in range(longest)] for row in rows])
