"""Precision and recall of a set of pictures by k-nearest-neighbour manifolds (Kynkaanniemi et al. 2019), in float64.

Axes: N, M pictures of the two sets, D features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEIGHBOURS = 3
"""k of the paper (Sec. 2)."""
ROWS = 64
"""Pictures compared at a time: of 50,000 against 50,000 a block of distances is 26 MB."""


def precision_recall(
    real: Float[Tensor, "N D"], drawn: Float[Tensor, "M D"], *, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of drawn pictures on the manifold of the real ones, and of real pictures on that of the drawn ones.

    Both fall with the number of pictures: compare only figures of equal N and M, which must be more than k.
    """
    return covered(drawn, real, k=k), covered(real, drawn, k=k)


def covered(points: Float[Tensor, "N D"], others: Float[Tensor, "M D"], *, k: int = NEIGHBOURS) -> float:
    """Share of points within the balls around the others, each as wide as to the k-th nearest of the rest (Eq. 1-2)."""
    assert len(others) > k, (len(others), k)
    points, others = points.double(), others.double()
    # The nearest of all is the picture itself.
    radius = torch.cat([_distances(rows, others).kthvalue(k + 1, dim=1).values for rows in others.split(ROWS)])
    inside: list[Bool[Tensor, " B"]] = [(_distances(rows, others) <= radius).any(dim=1) for rows in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Float[Tensor, "B D"], b: Float[Tensor, "M D"]) -> Float[Tensor, "B M"]:
    # By differences: the faster way by products finds a picture at some distance from itself.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
