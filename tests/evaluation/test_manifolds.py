"""Precision and recall against the definition, one picture at a time, and what they must and mustn't notice."""

import math

import pytest
import torch
from torch import Tensor

from gigagan.evaluation import manifolds
from gigagan.evaluation.manifolds import precision_recall


def _normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reference(real: Tensor, drawn: Tensor, k: int) -> tuple[float, float]:
    """Eq. 1-2 of Kynkaanniemi et al. 2019 in plain Python."""

    def covered(points: list[list[float]], others: list[list[float]]) -> float:
        radius = [sorted(math.dist(x, y) for j, y in enumerate(others) if j != i)[k - 1] for i, x in enumerate(others)]
        inside = [any(math.dist(p, x) <= r for x, r in zip(others, radius, strict=True)) for p in points]
        return sum(inside) / len(points)

    a, b = real.tolist(), drawn.tolist()
    return covered(b, a), covered(a, b)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_to_the_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifolds, "ROWS", 7)  # several blocks, the last one short
    real, drawn = _normal(40, 6, 1), 0.9 * _normal(30, 6, 2) + 0.9
    found = precision_recall(real, drawn, k=k)
    assert found == _reference(real, drawn, k)
    assert 0 < min(found) <= max(found) < 1
    assert precision_recall(drawn, real, k=k) == found[::-1]


def test_a_set_with_itself_is_1_and_sets_apart_are_0() -> None:
    a = _normal(50, 8, 3)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a.float()) == pytest.approx((1, 1))
    assert precision_recall(a, a + 100) == (0, 0)


def test_a_lost_mode_lowers_recall_and_not_precision() -> None:
    modes = [_normal(60, 4, seed) + shift for seed, shift in ((4, 0.0), (5, 50.0))]
    again = [_normal(60, 4, seed) + shift for seed, shift in ((6, 0.0), (7, 50.0))]
    both = precision_recall(torch.cat(modes), torch.cat(again))
    one = precision_recall(torch.cat(modes), again[0])
    assert one[0] == pytest.approx(both[0], abs=0.1)
    assert one[1] < both[1] - 0.4
    assert min(both) > 0.8


def test_pictures_of_nothing_real_lower_precision_and_not_recall() -> None:
    real, drawn = _normal(60, 4, 8), _normal(60, 4, 9)
    clean = precision_recall(real, drawn)
    # As many pictures far away, and far from each other: their balls must not reach the real ones.
    far = 100 * torch.eye(60, dtype=torch.float64)
    wide = [torch.cat([x, torch.zeros(60, 60, dtype=torch.float64)], dim=1) for x in (real, drawn)]
    off = torch.cat([torch.zeros(60, 4, dtype=torch.float64), 100 + far], dim=1)
    spoiled = precision_recall(wide[0], torch.cat([wide[1], off]))
    assert spoiled[0] == pytest.approx(clean[0] / 2)
    assert spoiled[1] == pytest.approx(clean[1], abs=0.05)


def test_copies_of_one_picture_lie_on_no_manifold_but_their_own() -> None:
    real = _normal(30, 4, 10)
    collapsed = real[:1].expand(30, -1)
    assert precision_recall(real, collapsed) == (1, 1 / 30)
