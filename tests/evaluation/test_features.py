"""Features of pictures: sizes, alpha, no neighbours; perceptual distance; damage."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gigagan.evaluation.distort import distort
from gigagan.evaluation.features import FeatureNetwork, as_batch, palette, perceptual_distance

Painter = Callable[..., NDArray[np.uint8]]


def test_transparent_becomes_white() -> None:
    image = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]], dtype=np.uint8)
    assert as_batch([image]).permute(0, 2, 3, 1)[0].tolist() == [[[10, 20, 30], [255, 255, 255], [127, 177, 227]]]


def test_features_have_the_sizes_of_the_protocol_and_no_neighbours(network: FeatureNetwork, painter: Painter) -> None:
    images = as_batch([painter(style, "ring", "left") for style in ("bold", "pale", "striped")])
    features = FeatureNetwork.vectors(network.run(images), images)
    assert features.pooled.shape == (3, 1280)
    assert features.cells.shape == (3, (112 + 320) * 4)
    # Half precision keeps 3 digits.
    alone = FeatureNetwork.vectors(network.run(images[1:2]), images[1:2])
    torch.testing.assert_close(alone.cells, features.cells[1:2], rtol=3e-3, atol=3e-3)


def test_palette_is_the_share_of_each_color() -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 0] = 255  # white once; black three times
    image[0, :, 0, 1] = 20  # nearest to black
    shares = palette(image)[0].square()
    assert shares[[0, -1]].tolist() == pytest.approx([0.75, 0.25])
    assert float(shares.sum()) == pytest.approx(1)


def test_perceptual_distance_is_a_distance(network: FeatureNetwork, painter: Painter) -> None:
    a, b = (network.run(as_batch([painter(style, "disc", "left")] * 2)) for style in ("bold", "striped"))
    assert perceptual_distance(a, a).tolist() == [0, 0]
    apart = perceptual_distance(a, b)
    torch.testing.assert_close(apart, perceptual_distance(b, a))
    assert 0.01 < float(apart[0]) < 4


def test_damage_is_harmless_and_repeatable(painter: Painter) -> None:
    images = as_batch([painter("bold", "square", place) for place in ("left", "middle", "right")])
    once, again, other = (distort(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    # What was white stays light, what was red stays red.
    assert float(once[:, :, :3].float().mean()) > 200
    assert float((once[1, 0] - 0.0 - once[1, 1])[14:18, 14:18].mean()) > 100


@pytest.mark.parametrize("side", [16, 128, 200])
def test_pictures_of_any_side_are_read(network: FeatureNetwork, side: int) -> None:
    assert len(network(torch.full((1, 3, side, side), 255, dtype=torch.uint8))) == 1
