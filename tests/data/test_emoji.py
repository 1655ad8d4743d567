"""The emoji set: the same bytes each time, and splits that hold."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan.data import emoji
from gigagan.data.dataset import open_dataset
from gigagan.data.emoji import Emoji, split_of
from gigagan.errors import DataError


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def many(count: int) -> list[Emoji]:
    return [
        Emoji(f"thing-{i}", f"a thing {i}", f"thing {i}", f"{i:X}", "objects", "tool", (), 1.0) for i in range(count)
    ]


def test_two_builds_are_the_same_bytes_in_one_process_and_in_two(
    packages: dict[str, Path], emoji_set: Path, tmp_path: Path
) -> None:
    emoji.build(packages, tmp_path / "again", resolution=16, seed=0, processes=2)

    assert digests(tmp_path / "again") == digests(emoji_set)


def test_what_is_in_it(emoji_set: Path) -> None:
    manifest = json.loads((emoji_set / "manifest.json").read_text())
    dataset = open_dataset(emoji_set)

    # No keycap, no flag. flat lacks grapes; doodle has apple, the first grapes, a man artist, a mirrored lock.
    assert manifest["styles"] == {"3d": 8, "flat": 7, "doodle": 4}
    assert manifest["concepts"] == 8
    assert sum(manifest["splits"].values()) == manifest["samples"] == len(dataset) == 19
    assert {shard["file"] for shard in manifest["shards"]} == {path.name for path in emoji_set.glob("*.tar")}
    for shard in manifest["shards"]:
        assert hashlib.sha256((emoji_set / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    credits_ = (emoji_set / "NOTICE").read_text()
    assert "Streamline" in credits_
    assert "CC-BY-4.0" in credits_
    samples = {sample.key: sample for sample in (dataset[i] for i in range(len(dataset)))}
    apple = samples["red-apple_flat"]
    assert apple.captions[0].text == "a flat icon of a red apple"
    assert apple.meta["style"] == "flat"
    assert apple.meta["licence"] == "MIT"
    assert apple.image.shape == (16, 16, 4)
    assert apple.image[8, 8].tolist() == [0xDD, 0x22, 0x22, 255]
    assert apple.image[0, 0, 3] == 0


def test_edges_keep_their_color_under_reduction(packages: dict[str, Path]) -> None:
    picture = next(p for p in emoji.pictures(packages, emoji.concepts(packages["names"])) if p.key == "red-apple_flat")
    image = np.asarray(Image.open(io.BytesIO(emoji.render(picture.source, 16)))).astype(int)

    edge = (image[..., 3] > 32) & (image[..., 3] < 255)
    assert edge.any()
    # Rounding at a low alpha, but no dark fringe from transparent black.
    assert abs(image[edge][:, :3] - [0xDD, 0x22, 0x22]).max() <= 16


def test_tar_members_carry_nothing_of_the_machine(emoji_set: Path) -> None:
    for path in emoji_set.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_splits_have_their_shares_and_are_disjoint_in_concepts() -> None:
    things = many(3000)
    split = {(t.family, style): split_of(t, style, seed=0) for t in things for style in emoji.STYLES}
    counts = Counter(split.values())

    held_out = {family for (family, _), name in split.items() if name == "test_concept"}
    assert 0.02 < len(held_out) / 3000 < 0.04
    assert all(split[family, style] == "test_concept" for family in held_out for style in emoji.STYLES)
    assert 0.05 < counts["test_pair"] / (counts["test_pair"] + counts["train"]) < 0.07


def test_a_family_is_on_one_side(packages: dict[str, Path]) -> None:
    artists = [e for e in emoji.concepts(packages["names"]) if e.family == "artist"]
    assert len(artists) == 3

    for seed in range(200):
        for style in emoji.STYLES:
            assert len({split_of(e, style, seed=seed) for e in artists}) == 1


def test_another_style_or_resolution_moves_nothing(packages: dict[str, Path], tmp_path: Path) -> None:
    less = {name: folder for name, folder in packages.items() if name != "flat"}
    emoji.build(less, tmp_path / "less", resolution=8, seed=0, processes=1)
    emoji.build(packages, tmp_path / "more", resolution=16, seed=0, processes=1)

    def splits(folder: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
        dataset = open_dataset(folder)
        samples = [dataset[i] for i in range(len(dataset))]
        return {s.key: (str(s.meta["split"]), tuple(c.text for c in s.captions)) for s in samples}

    fewer, all_ = splits(tmp_path / "less"), splits(tmp_path / "more")
    assert len(fewer) < len(all_)
    assert fewer == {key: all_[key] for key in fewer}


def test_split_changes_with_the_seed() -> None:
    things = many(1000)
    first, second = ([split_of(t, "3d", seed=seed) for t in things] for seed in (0, 1))
    assert first != second


def test_nothing_is_written_over_and_nothing_half_written(packages: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(DataError, match="not empty"):
        emoji.build(packages, tmp_path / "mine", resolution=8, seed=0, processes=1)
    with pytest.raises(DataError, match="no such concept"):
        emoji.build(packages, tmp_path / "new", resolution=8, seed=0, processes=1, only=frozenset({"aple"}))
    broken = packages | {"3d": tmp_path / "3d"}
    (tmp_path / "3d/assets").mkdir(parents=True)
    (tmp_path / "3d/assets/1f34e.webp").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify"):
        emoji.build(broken, tmp_path / "new", resolution=8, seed=0, processes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3d", "mine"]
