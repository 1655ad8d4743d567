"""The training picture nearest to each picture that a model drew: what was memorized shows. Axes: N, M pictures, D."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 256
"""Pictures compared at a time."""


@dataclass(frozen=True)
class Neighbour:
    """The nearest picture, and how far it is."""

    item: int
    """Its place in the data, as given."""
    distance: float
    """Euclidean, between features."""


def neighbours(points: Float[Tensor, "N D"], among: Float[Tensor, "M D"], items: Sequence[int]) -> list[Neighbour]:
    """The nearest of `among`, whose places are `items`, to each point."""
    assert len(items) == len(among) > 0, (len(items), len(among))
    found = []
    for rows in points.double().split(ROWS):
        index = torch.cdist(rows, among.double()).argmin(dim=1)
        # Again by differences: by products, which find the place, a copy is at some distance from its original.
        apart = (rows - among[index].double()).norm(dim=1)
        found += [Neighbour(items[i], d) for i, d in zip(index.tolist(), apart.tolist(), strict=True)]
    return found
