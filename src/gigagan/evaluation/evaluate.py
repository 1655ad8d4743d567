"""Measure pictures that a model drew: which to ask for, and what they are worth beside real ones.

Nothing here sees a model: `plan` says which prompts and seeds to draw, `evaluate` takes the pictures, uint8.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gigagan.evaluation.distances import frechet_distance, kernel_distance
from gigagan.evaluation.evaluator import Evaluator
from gigagan.evaluation.features import Features, as_batch, perceptual_distance
from gigagan.evaluation.manifolds import NEIGHBOURS, precision_recall
from gigagan.evaluation.nearest import Neighbour, neighbours
from gigagan.evaluation.real import Captioned, RealSet
from gigagan.evaluation.retrieval import recall_at

BATCH = 32
PAIRED_SHARE = 9
"""One prompt in so many is drawn with a second seed, and without its style with two."""
Image = NDArray[np.uint8]
Role = Literal["main", "again", "plain", "plain again"]


@dataclass(frozen=True)
class Request:
    """A picture to draw."""

    text: str
    seed: int
    item: int
    """The real picture whose caption it is."""
    role: Role = "main"
    """main = measured; again = the same prompt, another seed; plain = the prompt without its style."""


@dataclass(frozen=True)
class Figure:
    """A number, and what to hold it against."""

    name: str
    value: float
    real: float | None = None
    """The same of real pictures."""
    chance: float | None = None
    """The same of pictures that have nothing to do with the prompt."""
    share: bool = False
    """Whether it is a share of the pictures or captions, 0 to 1."""


@dataclass(frozen=True)
class Measured:
    """What was found of the pictures."""

    figures: list[Figure]
    nearest: list[Neighbour]
    """The training picture nearest to each main one, in the order of the requests."""


def plan(real: RealSet, split: str, num: int, *, seed: int = 0) -> list[Request]:
    """Canonical captions of a split, `num` in all and as many of each style, drawn by the seed; picture i has seed i.

    A caption comes as often as pictures have it, but of a style not again while there are others. At most half of the
    training split, the rest being what they are compared with. Raises DataError for no such split.
    """
    by_style: dict[str, list[int]] = defaultdict(list)
    shown: Counter[str] = Counter()
    turns: dict[int, int] = {}
    for i in _shuffled(real.indices(split), seed):
        turns[i] = shown[real.pictures[i].caption]
        shown[real.pictures[i].caption] += 1
        by_style[real.pictures[i].style].append(i)
    for column in by_style.values():
        column.sort(key=turns.__getitem__)
    columns = [by_style[style] for style in sorted(by_style)]
    if split == "train":
        columns = [column[: max(1, len(column) // 2)] for column in columns]
    # A round is one prompt of each style; styles that run out leave the later rounds to the others.
    longest = max(map(len, columns))
    items = [column[row] for row in range(longest) for column in columns if row < len(column)][:num]
    main = [Request(real.pictures[i].caption, n, i) for n, i in enumerate(items)]
    paired = main[: max(2, len(main) // PAIRED_SHARE)]
    again = [Request(r.text, len(main) + r.seed, r.item, "again") for r in paired]
    pictures = real.pictures
    bare = [r for r in paired if pictures[r.item].style and pictures[r.item].plain_caption]
    plain = [Request(pictures[r.item].plain_caption, r.seed, r.item, "plain") for r in bare]
    plain_again = [Request(r.text, len(main) + r.seed, r.item, "plain again") for r in plain]
    return main + again + plain + plain_again


def evaluate(
    images: Iterable[Image],
    requests: Sequence[Request],
    evaluator: Evaluator,
    data: Captioned,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Measured:
    """Figures of pictures, [H, W, 3], given in the order of the requests; `data` is what the evaluator was made of."""
    real = evaluator.real
    parts: list[Features] = []
    kept: dict[tuple[Role, int], Image] = {}
    paired = {r.item for r in requests if r.role == "again"}
    drawn = zip(requests, images, strict=True)
    bar = tqdm(total=len(requests), desc="measured", unit="picture", disable=None if progress else True)
    while batch := list(islice(drawn, BATCH)):
        parts.append(evaluator.network(as_batch([image for _, image in batch])))
        kept |= {(r.role, r.item): image for r, image in batch if r.item in paired}
        bar.update(len(batch))
    bar.close()
    features = Features.join(parts)
    main = [n for n, r in enumerate(requests) if r.role == "main"]
    items = [requests[n].item for n in main]
    beside = _beside(real, items, seed)
    training = real.indices("train")
    nearest = neighbours(features.pooled[main], real.features.pooled[training], training)
    figures = [
        *_readings(evaluator, features[torch.tensor(main)], items, beside),
        *_plain_readings(evaluator, features, requests),
        *_distances(real, features.pooled[main], items, seed),
        *_memorization(real, nearest, beside),
        *_diversity(evaluator, kept, data, seed),
    ]
    return Measured(figures, nearest)


def _readings(evaluator: Evaluator, drawn: Features, items: Sequence[int], beside: Sequence[int]) -> list[Figure]:
    """Whether style, concept and caption can be read off the pictures."""
    real = evaluator.real
    both = (drawn, items), (real.features[torch.tensor(beside)], beside)
    figures: list[Figure] = []
    if real.styles:
        value, of_real = (style_accuracy(evaluator, *pair) for pair in both)
        figures += _share("style read correctly", value, of_real, 1 / len(real.styles))
    for k in (1, 5) if real.concepts else ():
        value, of_real = (concept_recall(evaluator, k, *pair) for pair in both)
        figures += _share(f"concept R@{k} of {len(real.concepts)}", value, of_real, k / len(real.concepts))
    told_apart = [_told_apart(real, *pair) for pair in both]
    count = len(told_apart[0][1])
    if count > 1:  # real pictures are ranked among as many: among fewer they would be found more easily
        ranked = [(x[:count], those[:count]) for x, those in told_apart if len(those) >= count]
        scores = [caption_scores(evaluator, *pair) for pair in ranked]
        for direction, turned in (("text to image", [s.T for s in scores]), ("image to text", scores)):
            for k in (1, 5):
                value, of_real = [*(recall_at(k, s, torch.arange(count)) for s in turned), None][:2]
                figures += _share(f"{direction} R@{k} of {count}", value, of_real, min(1.0, k / count))
    return figures


def _share(name: str, value: float | None, of_real: float | None, chance: float) -> list[Figure]:
    return [] if value is None else [Figure(name, value, of_real, chance, share=True)]


def _told_apart(real: RealSet, features: Features, items: Sequence[int]) -> tuple[Features, list[int]]:
    """The first picture of each caption."""
    first: dict[str, int] = {}
    for place, item in enumerate(items):
        first.setdefault(real.pictures[item].caption, place)
    places = list(first.values())
    return features[torch.tensor(places)], [items[place] for place in places]


def _known(features: Features, values: Sequence[str]) -> tuple[Features, list[str]]:
    """Of the pictures of which the data knows something."""
    places = [place for place, value in enumerate(values) if value]
    return features[torch.tensor(places, dtype=torch.long)], [values[place] for place in places]


def style_accuracy(evaluator: Evaluator, features: Features, items: Sequence[int]) -> float | None:
    """Share of pictures in which the style of the prompt is read, of those whose style is known; None where none is."""
    features, wanted = _known(features, [evaluator.real.pictures[i].style for i in items])
    if not wanted:
        return None
    place = {style: i for i, style in enumerate(evaluator.real.styles)}
    logits = evaluator.readers.style_logits(features.texture)
    return recall_at(1, logits, torch.tensor([place[style] for style in wanted]))


def concept_recall(evaluator: Evaluator, k: int, features: Features, items: Sequence[int]) -> float | None:
    """Share of pictures whose concept is among the k best of all, of those where it is known; None where it isn't."""
    features, wanted = _known(features, [evaluator.real.pictures[i].concept for i in items])
    if not wanted:
        return None
    place = {concept: i for i, concept in enumerate(evaluator.real.concepts)}
    scores = evaluator.readers.concept_scores(evaluator.readers.look(features.cells))
    return recall_at(k, scores, torch.tensor([place[concept] for concept in wanted]))


def caption_scores(evaluator: Evaluator, features: Features, items: Sequence[int]) -> Tensor:
    """Scores of pictures (rows) and their own captions (columns)."""
    texts = evaluator.texts([evaluator.real.pictures[i].caption for i in items])
    return evaluator.readers.caption_scores(evaluator.readers.look(features.cells), texts)


def _plain_readings(evaluator: Evaluator, features: Features, requests: Sequence[Request]) -> list[Figure]:
    """The concept in pictures whose prompt names no style."""
    plain = [n for n, r in enumerate(requests) if r.role in ("plain", "plain again")]
    if not plain or not evaluator.real.concepts:
        return []
    value = concept_recall(evaluator, 5, features[torch.tensor(plain)], [requests[n].item for n in plain])
    if value is None:
        return []
    count = len(evaluator.real.concepts)
    return [Figure(f"concept R@5 of {count}, prompts without a style", value, None, 5 / count, share=True)]


def _distances(real: RealSet, drawn: Tensor, items: Sequence[int], seed: int) -> list[Figure]:
    """Distances to other real pictures, of the drawn ones and of the real ones they stand for (the floor)."""
    others = reference(real, items, seed)
    count = min(len(items), len(others))
    if count < 2:
        return []
    target = real.features.pooled[others[:count]]
    own = real.features.pooled[items[:count]]
    frechet = [frechet_distance(x, target) for x in (drawn[:count], own)]
    kernel = [kernel_distance(x, target) for x in (drawn[:count], own)]
    figures = [
        Figure(f"Frechet distance, {count} against {count} real", frechet[0], frechet[1]),
        Figure("Frechet distance over that of real pictures", frechet[0] / frechet[1], 1.0),
        Figure(f"kernel distance x1000, {count} against {count} real", 1000 * kernel[0], 1000 * kernel[1]),
    ]
    if count > NEIGHBOURS:
        manifolds = [precision_recall(target, x) for x in (drawn[:count], own)]
        for name, value, of_real in zip(("precision", "recall"), *manifolds, strict=True):
            figures.append(Figure(f"{name}, {count} against {count} real", value, of_real, share=True))
    return figures


def _memorization(real: RealSet, nearest: Sequence[Neighbour], beside: Sequence[int]) -> list[Figure]:
    """How near the drawn pictures are to training pictures, beside real ones that the model was never shown."""
    training = real.indices("train")
    if set(beside) & set(training):
        return []
    held_out = neighbours(real.features.pooled[list(beside)], real.features.pooled[training], training)
    value, of_real = (float(np.median([n.distance for n in found])) for found in (nearest, held_out))
    name = "distance to the nearest training picture"
    figures = [Figure(f"{name}, median", value, of_real)]
    # Held-out pictures that are copies of training pictures tell nothing.
    return [*figures, Figure(f"{name} over that of real pictures", value / of_real, 1.0)] if of_real else figures


def reference(real: RealSet, items: Sequence[int], seed: int) -> list[int]:
    """Training pictures other than the items, drawn by the seed, one in the style of each item while they last."""
    taken = set(items)
    pools: dict[str, list[int]] = defaultdict(list)
    for i in _shuffled([i for i in real.indices("train") if i not in taken], seed + 1):
        pools[real.pictures[i].style].append(i)
    return [pools[style].pop() for i in items if pools[style := real.pictures[i].style]]


def _diversity(evaluator: Evaluator, kept: dict[tuple[Role, int], Image], data: Captioned, seed: int) -> list[Figure]:
    """How far apart two seeds of one prompt are, beside two real drawings of its concept."""
    figures = []
    drawings = _two_drawings(evaluator.real, [item for role, item in kept if role == "again"], seed)
    place = [picture.index for picture in evaluator.real.pictures]
    of_real = _mean_distance(evaluator, [(data[place[i]].image, data[place[j]].image) for i, j in drawings])
    kinds: tuple[tuple[Role, Role, str], ...] = (
        ("main", "again", "two seeds of a prompt"),
        ("plain", "plain again", "two seeds of a prompt without a style"),
    )
    for first, second, name in kinds:
        pairs = [(image, kept[second, item]) for (role, item), image in kept.items() if role == first]
        value = _mean_distance(evaluator, pairs)
        if value is not None:
            figures.append(Figure(f"perceptual distance, {name}", value, of_real, 0.0))
    return figures


def _mean_distance(evaluator: Evaluator, pairs: Sequence[tuple[Image, Image]]) -> float | None:
    distances = [
        perceptual_distance(
            *(evaluator.network.run(as_batch(list(side))) for side in zip(*pairs[start : start + BATCH], strict=True))
        )
        for start in range(0, len(pairs), BATCH)
    ]
    return float(torch.cat(distances).mean()) if distances else None


def _two_drawings(real: RealSet, items: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """Two pictures in different styles of each item's concept, where it has them."""
    drawings: dict[str, list[int]] = defaultdict(list)
    for i in _shuffled(range(len(real.pictures)), seed):
        drawings[real.pictures[i].concept].append(i)
    found = []
    for item in items:
        concept = real.pictures[item].concept
        for i in drawings[concept] if concept else []:
            if real.pictures[i].style != real.pictures[item].style:
                found.append((item, i))
                break
    return found


def _beside(real: RealSet, items: Sequence[int], seed: int) -> list[int]:
    """As many real pictures, which the readers never saw: the items themselves where they are such."""
    if real.pictures[items[0]].split not in ("train", ""):
        return list(items)
    shuffled = _shuffled(real.indices(real.held_out_split), seed)
    first = {real.pictures[i].caption: i for i in reversed(shuffled)}
    return sorted(shuffled, key=lambda i: first[real.pictures[i].caption] != i)[: len(items)]  # new captions first


def _shuffled(items: Iterable[int], seed: int) -> list[int]:
    listed = list(items)
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(seed))
    return [listed[i] for i in order.tolist()]
