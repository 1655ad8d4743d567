"""Distances against closed forms and against formulas of our own."""

import pytest
import torch
from torch import Tensor

from gigagan.evaluation.distances import frechet_distance, kernel_distance

pytest.importorskip("torchmetrics")


def _normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _whitened(n: int, d: int, seed: int) -> Tensor:
    """Samples whose mean is 0 and whose covariance is I, exactly."""
    x = _normal(n, d, seed)
    x = x - x.mean(dim=0)
    covariance = x.T @ x / (n - 1)
    return x @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    d = 6
    mean = torch.arange(d, dtype=torch.float64) / 3
    a_mix, b_mix = (torch.diag(torch.linspace(low, 2, d, dtype=torch.float64)) for low in (0.5, 1.0))
    a, b = _whitened(500, d, 1) @ a_mix, _whitened(400, d, 2) @ b_mix + mean
    # Diagonal covariances commute: tr(S_a + S_b - 2 (S_a S_b)^(1/2)) = sum (sigma_a - sigma_b)^2.
    expected = mean.square().sum() + (a_mix.diagonal() - b_mix.diagonal()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_with_fewer_pictures_than_features() -> None:
    a, b = _normal(40, 100, 3), _normal(30, 100, 4) + 0.3
    a_centered, b_centered = a - a.mean(dim=0), b - b.mean(dim=0)
    # tr (S_a S_b)^(1/2) is the sum of singular values of A^T B, which stays small here.
    cross = torch.linalg.svdvals(a_centered @ b_centered.T).sum() / (39 * 29) ** 0.5
    traces = a_centered.square().sum() / 39 + b_centered.square().sum() / 29
    expected = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + traces - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-5)


def test_frechet_distance_of_a_set_with_itself_is_0() -> None:
    a = _normal(200, 20, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    a, b = _normal(12, 5, 6), _normal(12, 5, 7) + 0.5

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y / 5 + 1) ** 3

    n = len(a)
    within = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    between = sum(kernel(x, y) for x in a for y in b) / n**2
    assert kernel_distance(a, b) == pytest.approx(float(within - 2 * between), rel=1e-9)


def test_kernel_distance_is_0_on_average_for_one_distribution() -> None:
    same = torch.tensor([kernel_distance(_normal(60, 8, 2 * i), _normal(60, 8, 2 * i + 1)) for i in range(60)])
    assert abs(float(same.mean())) < 3 * float(same.std()) / 60**0.5
    assert float(same.min()) < 0, "an unbiased estimate falls below 0 as often as not"
    assert kernel_distance(_normal(60, 8, 1), _normal(60, 8, 2) + 0.5) > 5 * float(same.std())


def test_distances_grow_with_damage() -> None:
    a, b = _normal(300, 10, 8), _normal(300, 10, 9)
    for distance in (frechet_distance, kernel_distance):
        values = [distance(a, b + shift) for shift in (0.0, 0.3, 0.6)]
        assert values == sorted(values)
