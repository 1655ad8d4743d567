"""Losses against plain float64 formulas, and what they mean."""

import math

import pytest
import torch
from torch import Tensor

from gigagan import losses


def softplus(u: Tensor) -> Tensor:
    return (1 + u.double().exp()).log()


def fifteen(batch: int = 3) -> losses.Logits:
    sizes = {1: 32, 2: 16, 3: 8, 4: 4, 5: 1}
    return [{j: torch.randn(batch, 1, sizes[j], sizes[j]) for j in range(i + 1, 6)} for i in range(5)]


def test_logistic_losses() -> None:
    logits = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(
        losses.loss_real(logits).double(), softplus(-logits).mean((1, 2, 3)), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        losses.loss_generated(logits).double(), softplus(logits).mean((1, 2, 3)), rtol=1e-6, atol=1e-6
    )
    huge = torch.full((1, 1, 1, 1), -1000.0)
    assert losses.loss_real(huge).item() == 1000.0  # no overflow


def test_multi_scale_is_equation_6_with_its_weights() -> None:
    torch.manual_seed(0)
    logits, weights = fifteen(), [0.33, 0.17, 0.17, 0.17, 0.17]
    expected = torch.zeros(3).double()
    for i in range(5):
        for j in range(i + 1, 6):
            expected += weights[i] * (1.0 if j == 5 else 0.01) * softplus(-logits[i][j]).mean((1, 2, 3))
    value = losses.multi_scale(logits, losses.loss_real, level_weights=weights, intermediate_weight=0.01)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_r1_of_a_linear_discriminator_is_its_weight_norm() -> None:
    """Of two levels with two exits and one: sum_i |r_i (w_i,last + 0.3 w_i,before)|^2."""
    torch.manual_seed(0)
    weight = {key: torch.randn(3, side, side).double() for key, side in (((0, 1), 4), ((0, 2), 4), ((1, 2), 2))}
    pyramid = [torch.randn(5, 3, side, side).double().requires_grad_() for side in (4, 2)]
    logits: losses.Logits = [{}, {}]
    for (i, j), w in weight.items():
        logits[i][j] = (pyramid[i] * w).sum(dim=(1, 2, 3)).view(5, 1, 1, 1)
    penalty = losses.r1_penalty(logits, pyramid, level_weights=[0.6, 0.5], intermediate_weight=0.3)
    expected = (0.6 * (weight[0, 2] + 0.3 * weight[0, 1])).square().sum() + (0.5 * weight[1, 2]).square().sum()
    torch.testing.assert_close(penalty, expected)


def test_r1_averages_a_logit_map_instead_of_summing_it() -> None:
    img = torch.randn(2, 1, 4, 4).requires_grad_()
    one = losses.r1_penalty(
        [{1: img.mean((1, 2, 3), keepdim=True)}], [img], level_weights=[1.0], intermediate_weight=0.0
    )
    same = losses.r1_penalty([{1: img}], [img], level_weights=[1.0], intermediate_weight=0.0)
    torch.testing.assert_close(one, same)


@pytest.mark.parametrize("seed", range(20))
def test_a_mismatched_caption_is_never_its_own(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    captions = ["a", "b", "a", "a", "c", "b", "a", "a"]
    other, has_other = losses.mismatched(captions, generator)
    assert bool(has_other.all())
    assert all(captions[int(o)] != captions[b] for b, o in enumerate(other))


def test_no_other_caption_means_no_loss() -> None:
    other, has_other = losses.mismatched(["same"] * 4, torch.Generator().manual_seed(0))
    assert not bool(has_other.any())
    assert losses.mean_where(torch.full((4,), 7.0), has_other).item() == 0.0
    assert len(other) == 4


def test_mean_where() -> None:
    assert losses.mean_where(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True])).item() == 5.0


def test_ema_half_life() -> None:
    assert math.isclose(losses.ema_decay(50, 10.0) ** 200, 0.5, rel_tol=1e-9)  # 200 steps of 50 images = 10 kimg


def test_paired_l1() -> None:
    a, b = [torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)], [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)]
    assert losses.paired_l1(a, b).item() == 0.5
