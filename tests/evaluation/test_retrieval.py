"""Recall on rankings made by hand."""

import pytest
import torch

from gigagan.evaluation.retrieval import ranks, recall_at


def test_ranks_on_a_constructed_table() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    target = torch.tensor([0, 1, 2])
    assert ranks(scores, target).tolist() == [0, 2, 1]
    assert recall_at(1, scores, target) == pytest.approx(1 / 3)
    assert recall_at(2, scores, target) == pytest.approx(2 / 3)
    assert recall_at(3, scores, target) == 1


def test_matching_embeddings_are_found_and_shuffled_ones_are_not() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    own = torch.arange(50)
    assert recall_at(1, x @ x.T, own) == 1
    assert recall_at(1, x @ x.roll(1, dims=0).T, own) == 0


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_scores_that_say_nothing_find_nothing(value: float) -> None:
    scores = torch.full((4, 10), value)
    assert recall_at(5, scores, torch.arange(4)) == 0
