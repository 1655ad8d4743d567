"""The measures of an upsampler: right at the ends of the scale, and caught when pictures or captions are swapped."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from gigagan.data.dataset import open_dataset
from gigagan.errors import DataError
from gigagan.evaluation import upsampler as evaluation
from gigagan.evaluation.features import FeatureNetwork
from gigagan.evaluation.inception import Inception, inception_score
from gigagan.evaluation.upsampler import BICUBIC, OURS, WRONG, Pair, by_size, measure, pairs
from gigagan.models.frozen import HashedText
from gigagan.upsampling.enlarger import Enlarger


def dataset(folder: Path, sides: Sequence[int]) -> Any:
    lines = []
    for number, side in enumerate(sides):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        smooth = Image.fromarray(pixels).resize((4, 4)).resize((side, side), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{number}.png")
        lines.append(f'{{"file_name": "{number}.png", "text": "picture {number}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return open_dataset(folder, split="train", resolution=64, enlarge=False)


class Oracle(Enlarger):
    """An enlarger that knows the true picture of each caption."""

    def __init__(self, items: Sequence[Pair]) -> None:
        self.text_encoder = HashedText(max_tokens=8)
        self.real = {item.caption: item.real for item in items}

    def bands(self, source: Any, scale: int, request: Any, progress: Any = None) -> Iterator[Tensor]:
        real = self.real[request.prompt]
        assert scale == real.shape[1] // source.height
        yield real.float() / 127.5 - 1


@pytest.fixture
def items(tmp_path: Path) -> list[Pair]:
    return pairs(dataset(tmp_path, [64] * 4), side=16, num=10)


def test_the_true_picture_is_perfect_and_anothers_is_not(items: list[Pair], random_lite0: Any) -> None:
    steps: list[int] = []

    def nearest(low: Tensor, factor: int) -> Tensor:
        return low.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    network = FeatureNetwork(random_lite0)
    measured = measure(items, Oracle(items), network, others={"nearest": nearest}, progress=steps.append)
    assert len(steps) == 4
    ours, wrong, bicubic = (measured.scores[method] for method in (OURS, WRONG, BICUBIC))
    assert bicubic.psnr > measured.scores["nearest"].psnr > wrong.psnr
    assert ours.psnr > 130
    assert ours.ssim == pytest.approx(1, abs=1e-3)  # in float32, of a variance that cancels
    assert ours.perceptual == pytest.approx(0, abs=1e-6)
    assert ours.consistency == 0
    assert wrong.psnr < bicubic.psnr < ours.psnr
    assert wrong.perceptual > bicubic.perceptual > ours.perceptual
    assert wrong.consistency > bicubic.consistency
    assert measured.own_caption_wins == 1
    assert [image.size for row in measured.rows for image in row] == [(64, 64)] * 12
    assert "own caption nearer than another's: 100.0 %" in evaluation.table(measured)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_fid_and_inception_score_where_there_is_the_network(
    items: list[Pair], random_lite0: Any, tiny_inception: Path
) -> None:
    inception = Inception(tiny_inception)
    many = items * 3  # the score has ten parts
    measured = measure(many, Oracle(items), FeatureNetwork(random_lite0), inception=inception)
    real = [item.real.permute(1, 2, 0).numpy() for item in many]
    ours, bicubic = (measured.scores[method] for method in (OURS, BICUBIC))
    assert ours.fid is not None
    assert bicubic.fid is not None
    assert abs(ours.fid) < 1e-3 * bicubic.fid
    assert ours.inception_score == pytest.approx(inception_score(inception.probabilities(real)), rel=1e-5)
    lines = evaluation.table(measured).splitlines()
    assert lines[0].split()[-2:] == ["FID", "IS"]
    assert lines[3].split()[-2] == f"{bicubic.fid:.2f}"


def test_swapped_captions_are_caught(items: list[Pair], random_lite0: Any) -> None:
    oracle = Oracle(items)
    captions = list(oracle.real)
    half = len(captions) // 2
    oracle.real = dict(zip(captions, [oracle.real[c] for c in captions[half:] + captions[:half]], strict=True))
    measured = measure(items, oracle, FeatureNetwork(random_lite0))
    assert measured.own_caption_wins == 0


def test_each_size_is_measured_apart(tmp_path: Path) -> None:
    """At most `num` of each; a size with a lone picture is left out, for there is no other caption to give it."""
    found = pairs(dataset(tmp_path, [32, 64, 32, 16, 40, 64, 128, 64, 32]), side=16, num=10)
    assert [item.real.shape[1] for item in found] == [64] * 4 + [32] * 3  # 128 px is read at the set's 64
    assert all(item.low.shape == (3, 16, 16) for item in found)
    apart = by_size(found)
    assert {side: len(alike) for side, alike in apart.items()} == {64: 4, 32: 3}
    again = pairs(open_dataset(tmp_path, resolution=64, enlarge=False), side=16, num=2)
    assert [item.caption for item in again] == [item.caption for side in (64, 32) for item in apart[side][:2]]


def test_a_set_of_small_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds fewer than 2 pictures of 32 px"):
        pairs(dataset(tmp_path, [16, 24]), side=16, num=10)
