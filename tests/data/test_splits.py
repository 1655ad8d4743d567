"""Which samples a run is shown: by a manifest, by what lines, rows and shards name, or all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gigagan.data.check import check
from gigagan.data.dataset import open_dataset
from gigagan.data.shards import write_shards
from gigagan.errors import DataError

Picture = tuple[str, bytes, str]


def as_folder(pictures: list[Picture], splits: list[str], folder: Path) -> Path:
    """Each line with its split, where that isn't empty."""
    folder.mkdir()
    lines = []
    for (key, image, text), split in zip(pictures, splits, strict=True):
        (folder / f"{key}.png").write_bytes(image)
        lines.append(json.dumps({"file_name": f"{key}.png", "text": text} | ({"split": split} if split else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_splits(emoji_set: Path, pictures: list[Picture], shard_set: Callable[..., Path], tmp_path: Path) -> None:
    total = len(open_dataset(emoji_set))
    splits = json.loads((emoji_set / "manifest.json").read_text())["splits"]
    for name, count in splits.items():
        if count:
            dataset = open_dataset(emoji_set, split=name)
            assert len(dataset) == count
            assert {dataset[i].meta["split"] for i in range(count)} == {name}
    assert sum(splits.values()) == total
    with pytest.raises(DataError, match="has no split 'tset'; it has"):
        open_dataset(emoji_set, split="tset")
    plain = shard_set(pictures)
    assert len(open_dataset(plain, split="train")) == 12
    with pytest.raises(DataError, match="has no splits"):
        open_dataset(plain, split="test_pair")
    for names in (["test"] * 4 + ["train"] * 8, ["test"] * 4 + [""] * 8):  # where some name a split, others are train
        folder = as_folder(pictures, names, tmp_path / f"folder {len(set(names))}{names[-1]}")
        assert (len(open_dataset(folder, split="test")), len(open_dataset(folder, split="train"))) == (4, 8)
        assert check(folder, progress=False).splits == {"test": 4, "train": 8}
    table = pa.table(
        {
            "image": [content for _, content, _ in pictures],
            "text": [text for _, _, text in pictures],
            "split": ["test"] * 4 + [None] * 8,
        }
    )
    pq.write_table(table, tmp_path / "some.parquet")
    some = tmp_path / "some.parquet"
    assert (len(open_dataset(some, split="test")), len(open_dataset(some, split="train"))) == (4, 8)


def test_splits_of_shards_without_a_manifest_need_an_index(pictures: list[Picture], tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        samples = [(key, content, {"text": text, "split": name}) for key, content, text in pictures]
        write_shards(samples[:6], tmp_path / name, split="", first=0)
        write_shards(samples[6:], tmp_path / name, split="", first=1)
    assert len(open_dataset(tmp_path / "train", split="train")) == 12
    shutil.copyfile(tmp_path / "test" / "000001.tar", tmp_path / "train" / "000002.tar")
    assert len(open_dataset(tmp_path / "train")) == 18
    with pytest.raises(DataError, match=r"its samples name splits \(test\), which an index tells apart"):
        open_dataset(tmp_path / "train", split="train")
