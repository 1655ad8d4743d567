"""FID as clean-fid measures it: its resize, its features, its distance; Inception score by its definition.

The numbers of clean-fid are of version 0.1.35, its own functions, here on 2026-11-27 (scipy 1.17).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from gigagan.errors import CheckpointError
from gigagan.evaluation.distances import frechet_distance
from gigagan.evaluation.inception import INPUT_SIDE, Inception, enlarged, inception_score, reduced

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def waves(side: int) -> NDArray[np.uint8]:
    """The picture that clean-fid's numbers are of, [H, W, 3]."""
    y, x, c = np.mgrid[0:side, 0:side, 0:3]
    return ((x * (7 + c) + y * (13 - c) + x * y) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("side", "points", "mean", "deviation"),
    [
        (32, (2.1541080474853516, 28.564502716064453, 81.4855728149414), 126.66651046682559, 68.03190460997166),
        (64, (16.484357833862305, 96.02812957763672, 174.00489807128906), 127.18750672705836, 65.24603112514679),
        (256, (121.09059143066406, 42.637569427490234, 245.0960693359375), 127.33404588969422, 59.8920613820007),
        (400, (232.70657348632812, 196.3094482421875, 78.81136322021484), 127.2134123709702, 42.99539933683564),
    ],
)
def test_resize_is_clean_fids(side: int, points: Sequence[float], mean: float, deviation: float) -> None:
    picture = enlarged(waves(side))
    assert [float(picture[at]) for at in ((0, 5, 7), (1, 150, 149), (2, 298, 0))] == pytest.approx(points, rel=1e-5)
    assert picture.astype(np.float64).mean() == pytest.approx(mean, rel=1e-6)
    assert picture.astype(np.float64).std() == pytest.approx(deviation, rel=1e-6)
    assert picture.min() >= 0
    assert picture.max() <= 255


def test_resize_is_not_rounded_and_keeps_what_is_plain() -> None:
    assert (enlarged(np.full((64, 64, 3), 77, dtype=np.uint8)) == 77).all()
    assert len(np.unique(enlarged(waves(32)))) > 256


def test_larger_pictures_are_reduced_by_lanczos_and_smaller_ones_left() -> None:
    large, small = waves(400), waves(64)
    expected = np.asarray(Image.fromarray(large).resize((256, 256), Image.Resampling.LANCZOS))
    assert (reduced(large) == expected).all()
    assert reduced(small) is small


def test_distance_is_clean_fids() -> None:
    n = np.arange(60 * 6).reshape(60, 6)
    a, b = np.sin(n * 1.7 + n % 7), 1.3 * np.cos(n * 0.9) + 0.2 * np.sin(n * n % 11)
    pytest.importorskip("torchmetrics")
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(5.77594883487468, rel=1e-9)


def test_features_are_of_normalized_pictures_at_299(tiny_inception: Path) -> None:
    pictures = [waves(32), waves(32)[::-1].copy()]
    features = Inception(tiny_inception).features(pictures)
    layers = torch.jit.load(str(tiny_inception)).layers
    for picture, found in zip(pictures, features, strict=True):
        batch = torch.from_numpy((enlarged(picture) - 128) / 128)[None]
        assert batch.shape == (1, 3, INPUT_SIDE, INPUT_SIDE)
        torch.testing.assert_close(found, layers(batch)[0].detach())


def test_probabilities_are_of_the_pictures_as_they_are(tiny_inception: Path) -> None:
    found = Inception(tiny_inception).probabilities([waves(32), waves(32).T.copy().T])
    assert found.shape == (2, 1008)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(found[0], found[1])


def test_inception_score_is_the_definition() -> None:
    p = torch.rand(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = p / p.sum(dim=1, keepdim=True)
    rows = p.tolist()
    mean = [sum(row[c] for row in rows) / 23 for c in range(5)]
    kl = sum(row[c] * math.log(row[c] / mean[c]) for row in rows for c in range(5)) / 23
    assert inception_score(p, num_splits=1) == pytest.approx(math.exp(kl), rel=1e-12)


def test_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    assert inception_score(torch.eye(8).repeat(10, 1)) == pytest.approx(8)
    assert inception_score(torch.full((20, 8), 1 / 8)) == pytest.approx(1)


def test_a_file_that_is_not_the_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file; expected inception-2015-12-05\.pt"):
        Inception(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(CheckpointError, match="can't be read"):
        Inception(tmp_path / "text.pt")
    torch.jit.script(nn.Flatten()).save(str(tmp_path / "other.pt"))
    with pytest.raises(CheckpointError, match="can't be read"):
        Inception(tmp_path / "other.pt")


def test_another_number_of_features_is_no_fid(inception_file: Path) -> None:
    with pytest.raises(CheckpointError, match="gives 40 features; expected 2048"):
        Inception(inception_file).features([waves(32)])
