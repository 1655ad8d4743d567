"""Recall of a ranking. Axes: Q queries, G gallery."""

from jaxtyping import Float, Int
from torch import Tensor


def ranks(scores: Float[Tensor, "Q G"], target: Int[Tensor, " Q"]) -> Int[Tensor, " Q"]:
    """Place of each query's target in its row, 0 = first; what ties with the target comes before it.

    So scores that say nothing (all equal, or not a number) find nothing.
    """
    own = scores.gather(1, target[:, None])
    return (~(scores < own)).sum(dim=1) - 1


def recall_at(k: int, scores: Float[Tensor, "Q G"], target: Int[Tensor, " Q"]) -> float:
    """Share of queries whose target is among the k best of their row (R@k)."""
    return float((ranks(scores, target) < k).double().mean())
