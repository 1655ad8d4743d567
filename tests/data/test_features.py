"""Kept caption features are what the encoder says, from memory and from a file."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gigagan.data.features import CaptionFeatures, FeatureFile, write_features
from gigagan.errors import DataError
from gigagan.models.frozen import HashedText, TextFeatures

CAPTIONS = [
    "a red apple",
    "grapes",
    "a 3D render of a rocket on a blue background",
    "a red apple",
    "grapes, flat design",
]


class Counting(HashedText):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        self.asked += prompts
        return super().encode(prompts)


def assert_equal(found: TextFeatures, expected: TextFeatures) -> None:
    """Padded no further than the longest caption needs."""
    length = found.tokens.shape[1]
    assert length - expected.mask.sum(dim=1).max() < 8
    assert torch.equal(found.tokens, expected.tokens[:, :length].half().float())
    assert torch.equal(found.mask, expected.mask[:, :length])
    assert not expected.mask[:, length:].any()
    assert torch.equal(found.global_index, expected.global_index)


def test_each_caption_is_encoded_once() -> None:
    encoder = Counting()
    features = CaptionFeatures(encoder)
    encoder.asked.clear()

    assert_equal(features(CAPTIONS), HashedText().encode(CAPTIONS))
    assert_equal(features(CAPTIONS[::-1]), HashedText().encode(CAPTIONS[::-1]))
    assert sorted(encoder.asked) == sorted(set(CAPTIONS))


def test_the_cache_is_bounded_and_never_changes_a_result() -> None:
    features = CaptionFeatures(HashedText(), max_cached=2)
    for _ in range(3):
        assert_equal(features(CAPTIONS), HashedText().encode(CAPTIONS))
    assert len(features._kept) == 2


def test_file_equals_direct_encoding(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "features.safetensors"
    assert write_features(HashedText(), CAPTIONS, path, progress=False) == 4
    encoder = Counting()
    features = CaptionFeatures(encoder, preload=path)
    encoder.asked.clear()

    assert_equal(features([*CAPTIONS, "not in the file"]), HashedText().encode([*CAPTIONS, "not in the file"]))
    assert encoder.asked == ["not in the file"]
    assert list(path.parent.iterdir()) == [path]


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, captions in (("a", CAPTIONS), ("b", CAPTIONS[::-1])):
        write_features(HashedText(), captions, tmp_path / name, batch=2, progress=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_features(HashedText(), CAPTIONS, path, progress=False)
    with pytest.raises(DataError, match="write it again"):
        FeatureFile(path, HashedText(max_tokens=16))

    class Reseeded(HashedText):
        def encode(self, prompts: Sequence[str]) -> TextFeatures:
            return super().encode([f"{prompt}!" for prompt in prompts])

    with pytest.raises(DataError, match="write it again"):
        FeatureFile(path, Reseeded())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(DataError, match="no such file"):
        FeatureFile(path, HashedText())
    write_features(HashedText(), CAPTIONS, path, progress=False)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="isn't a whole file"):
        FeatureFile(path, HashedText())
    (tmp_path / "taken").touch()
    with pytest.raises(DataError, match="can't be written"):
        write_features(HashedText(), CAPTIONS, tmp_path / "taken" / "f", progress=False)
