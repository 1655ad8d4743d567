"""The nearest training picture: the place, the distance, and a copy is at exactly 0."""

import math

import pytest
import torch

from gigagan.evaluation import nearest
from gigagan.evaluation.nearest import Neighbour, neighbours


def test_equal_to_a_search_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "ROWS", 3)
    draw = torch.Generator().manual_seed(0)
    points, among = torch.randn(10, 5, generator=draw), torch.randn(20, 5, generator=draw)
    items = list(range(100, 120))
    for point, found in zip(points.tolist(), neighbours(points, among, items), strict=True):
        apart = [math.dist(point, other) for other in among.tolist()]
        assert found.item == items[apart.index(min(apart))]
        assert found.distance == pytest.approx(min(apart), rel=1e-12)


def test_a_copy_is_at_0_however_large_the_features() -> None:
    among = 1000 + torch.randn(30, 1280, generator=torch.Generator().manual_seed(1))
    assert neighbours(among[[4, 20]], among, range(30)) == [Neighbour(4, 0.0), Neighbour(20, 0.0)]
