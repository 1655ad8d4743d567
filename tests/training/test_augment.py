"""Augmentation: alike on every level, as strong and as often as the configuration says, and differentiable."""

import pytest
import torch
import torch.nn.functional as F

from gigagan.augment import Augmentation
from gigagan.config import AugmentConfig

CPU = torch.device("cpu")
STRONG = AugmentConfig(prob=1.0)


def drawn(cfg: AugmentConfig, batch: int, seed: int = 0) -> Augmentation:
    return Augmentation.draw(cfg, batch, torch.Generator().manual_seed(seed), CPU)


def test_levels_are_moved_alike() -> None:
    """A smooth picture moved and then reduced is the reduced one moved."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    img = torch.stack([rows, columns, rows * columns])[None].repeat(6, 1, 1, 1)
    large, small = drawn(STRONG, 6)([img, F.avg_pool2d(img, 4)])
    inside = slice(5, -5)  # what is drawn in over the border is that of the level
    torch.testing.assert_close(
        F.avg_pool2d(large, 4)[..., inside, inside], small[..., inside, inside], atol=0.02, rtol=0
    )
    assert (small - F.avg_pool2d(img, 4))[..., inside, inside].abs().amax(dim=(1, 2, 3)).min() > 0.05


def test_a_share_of_the_pictures_is_changed_as_far_as_it_says() -> None:
    augmentation = drawn(AugmentConfig(prob=0.3, shift=0.1, zoom=0.25, brightness=0.4), 20_000)
    plain = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    changed = (augmentation.theta != plain).any(dim=2).any(dim=1) | (augmentation.brightness != 0)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.015)
    size, shift = augmentation.theta[:, 0, 0], augmentation.theta[:, :, 2] / 2  # of a side, which is 2 units
    assert (size.max(), size.min()) == (pytest.approx(1.25, rel=0.01), pytest.approx(1 / 1.25, rel=0.01))
    assert (shift.max(), shift.min()) == (pytest.approx(0.1, rel=0.01), pytest.approx(-0.1, rel=0.01))
    assert augmentation.brightness.abs().max() == pytest.approx(0.4, rel=0.01)


def test_without_it_pictures_stay_and_with_it_gradients_pass() -> None:
    img = torch.randn(3, 3, 16, 16, requires_grad=True)
    torch.testing.assert_close(drawn(AugmentConfig(prob=0.0), 3)([img])[0], img)
    (moved,) = drawn(STRONG, 3)([img])
    (gradient,) = torch.autograd.grad(moved.sum(), img)
    assert gradient.sum() == pytest.approx(moved.numel(), rel=1e-4)  # each pixel is a mean of pixels, and a number


def test_a_part_is_that_part_of_the_whole() -> None:
    img = torch.randn(5, 3, 8, 8)
    whole, part = drawn(STRONG, 5), drawn(STRONG, 5).part(slice(2, 4))
    assert torch.equal(whole([img])[0][2:4], part([img[2:4]])[0])
