"""Figures as a table and as JSON, and what they mean."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gigagan.evaluation.evaluate import Figure
from gigagan.evaluation.features import NAME, PERCEPTUAL_NAME
from gigagan.evaluation.manifolds import NEIGHBOURS
from gigagan.evaluation.real import COPIES

PROTOCOL = {
    "pictures": "uncurated: prompts and seeds fixed by --num and --split before any picture was drawn",
    "style, concept, text": (
        "small networks over EfficientNet-Lite1 maps (style: statistics at strides 2 to 16, and colors; the rest: "
        f"strides 16 and 32 in 2 x 2 cells), trained on the training split and {COPIES} damaged copies of each "
        "picture; texts by the mean token of all-MiniLM-L6-v2"
    ),
    "concept": "each picture ranks all concepts of the data set; one never seen in training is known by its name alone",
    "text to image, image to text": (
        "each caption ranks all the pictures measured, each picture all their captions; of a caption that comes again "
        "the first picture counts"
    ),
    "real": (
        "readings: as many real pictures the networks never saw, or all there are, in retrieval as many or none; "
        "distances: the real pictures of the same prompts against the "
        "same others, the floor at this number; perceptual distance: two drawings of one concept in two styles; "
        "nearest training picture: of as many real pictures that are not of the training split"
    ),
    "distances": f"{NAME}; Gaussians and cubic kernel (unbiased) in float64 by torchmetrics; not FID",
    "precision, recall": (
        f"k-nearest-neighbour manifolds, k = {NEIGHBOURS}, in the same features and of the same pictures as the "
        "distances: the share of drawn pictures on the manifold of the real ones, and the other way round"
    ),
    "nearest training picture": (
        "Euclidean, in the same features, among the whole training split; well under 1 times that of real pictures "
        "means memorized"
    ),
    "perceptual distance": PERCEPTUAL_NAME,
    "time": "seconds_per_picture: of drawing alone, the reading of the prompts and the first batch included",
}
MISSING = "-"
HEADINGS = ("", "value", "real", "chance")


def row(figure: Figure) -> tuple[str, str, str, str]:
    """Its name and, as text, its value, that of real pictures and chance."""
    return figure.name, _text(figure, figure.value), _text(figure, figure.real), _text(figure, figure.chance)


def table(figures: Sequence[Figure]) -> str:
    """Aligned columns: figure, value, of real pictures, chance."""
    rows = [HEADINGS, *map(row, figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in rows
    ]
    return "\n".join(lines)


def as_json(figures: Sequence[Figure], about: Mapping[str, Any], protocol: Mapping[str, str] = PROTOCOL) -> str:
    """One JSON object: what was measured, how, and the figures by name."""
    listed = {f.name: {"value": f.value, "real": f.real, "chance": f.chance} for f in figures}
    return json.dumps({**about, "protocol": protocol, "figures": listed}, indent=2) + "\n"


def _text(figure: Figure, value: float | None) -> str:
    if value is None:
        return MISSING
    if figure.share:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
