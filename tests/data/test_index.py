"""One file for a whole set: it gives the same samples, filters them, mixes with others, and says what they are like."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from gigagan import config
from gigagan.cli import data as commands
from gigagan.config import DataConfig, FilterConfig
from gigagan.data.dataset import open_dataset, open_for_training
from gigagan.data.loader import batches
from gigagan.data.shards import write_shards
from gigagan.errors import ConfigError, DataError

Picture = tuple[str, bytes, str]


def call(*arguments: str) -> str:
    done = CliRunner().invoke(commands.data, list(arguments), standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Forty samples in two shards: sides 8 ... 47, captions of growing length, a score that every fifth lacks."""
    rng, samples = np.random.default_rng(0), []
    (tmp_path / "set").mkdir()
    for k in range(40):
        picture = Image.fromarray(rng.integers(0, 256, (8 + k, 60, 3), np.uint8))
        picture.save(tmp_path / "one.png")
        meta = {"text": "x" * (k + 1), "split": "test" if k % 10 == 9 else "train"}
        meta |= {} if k % 5 == 4 else {"similarity": k / 100}
        samples.append((f"k{k:02d}", (tmp_path / "one.png").read_bytes(), meta))
    write_shards(samples[:20], tmp_path / "set", split="", first=0)
    write_shards(samples[20:], tmp_path / "set", split="", first=1)
    assert "40 samples" in call("index", str(tmp_path / "set"), "--out", str(tmp_path / "set.index"))
    return tmp_path / "set.index"


def test_an_index_of_another_set_is_refused(tmp_path: Path) -> None:
    """Of a folder it holds numbers of lines: a line more, and they mean other samples."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = []
    for k in range(6):
        Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / f"{k}.png")
        lines.append(
            json.dumps(
                {"file_name": f"{k}.png", "text": f"{k}", "score": 10**400} | ({"split": "test"} if k < 2 else {})
            )
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert "6 samples" in call("index", str(folder), "--out", str(tmp_path / "set.index"))
    dataset = open_dataset(tmp_path / "set.index", split="train")
    assert [dataset.key(k) for k in range(len(dataset))] == ["2.png", "3.png", "4.png", "5.png"]
    for changed in (lines[::-1], lines[:5], [*lines[:1], *lines]):
        (folder / "metadata.jsonl").write_text("\n".join(changed))
        with pytest.raises(DataError, match=r"isn't the set that was indexed; index the set again"):
            open_dataset(tmp_path / "set.index", split="train")


def test_an_index_of_rewritten_parquet_is_refused(tmp_path: Path) -> None:
    """As many rows in another order have the same names."""
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    columns = {
        "image": [(tmp_path / "one.png").read_bytes()] * 6,
        "text": list("abcdef"),
        "split": ["test"] * 2 + [""] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    call("index", str(tmp_path / "set.parquet"), "--out", str(tmp_path / "set.index"))
    dataset = open_dataset(tmp_path / "set.index", split="train")
    assert [dataset[k].captions[0].text for k in range(len(dataset))] == list("cdef")
    pq.write_table(pa.table({name: values[::-1] for name, values in columns.items()}), tmp_path / "set.parquet")
    with pytest.raises(DataError, match="isn't the set that was indexed"):
        open_dataset(tmp_path / "set.index", split="train")


def test_where_nothing_can_be_written_is_told_first(indexed: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for command in ("index", "encode", "heads"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            call(command, str(tmp_path / "nothing here"), "--out", str(tmp_path / "taken" / "x.index"))


def keys(path: Path, keep: FilterConfig) -> list[str]:
    dataset = open_dataset(path, keep=keep)
    return [dataset.key(k) for k in range(len(dataset))]


def test_the_same_samples(indexed: Path) -> None:
    through, direct = open_dataset(indexed), open_dataset(indexed.with_suffix(""))
    assert len(through) == len(direct) == 40
    for k in (0, 1, 19, 20, 39):
        assert through.key(k) == direct.key(k)
        assert np.array_equal(through[k].image, direct[k].image)
        assert (through[k].captions, through[k].meta) == (direct[k].captions, direct[k].meta)
    again = pickle.loads(pickle.dumps(through.source))
    assert again.read(25).image == direct.source.read(25).image
    assert through.fingerprint() == direct.fingerprint()


def test_splits(indexed: Path) -> None:
    assert len(open_dataset(indexed, split="test")) == 4
    assert len(open_dataset(indexed, split="train")) == 36
    with pytest.raises(DataError, match="has no split 'val'; it has test, train"):
        open_dataset(indexed, split="val")


def test_folders_and_parquet_are_indexed_by_number(
    pictures: list[Picture], tmp_path: Path, shard_set: Callable[..., Path]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = []
    for key, content, text in pictures:
        (folder / f"{key}.png").write_bytes(content)
        lines.append(json.dumps({"file_name": f"{key}.png", "text": text}))
    (folder / "k03.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert "11 samples" in call("index", str(folder), "--out", str(tmp_path / "f.index"))
    dataset = open_dataset(tmp_path / "f.index")
    assert "k03.png" not in [dataset.key(k) for k in range(len(dataset))]
    assert dataset[3].captions[0].text == "picture number 4"


def test_filters(indexed: Path) -> None:
    every = [f"k{k:02d}" for k in range(40)]
    assert keys(indexed, FilterConfig()) == every
    assert keys(indexed, FilterConfig(min_side=40)) == every[32:]
    assert keys(indexed, FilterConfig(min_characters=5, max_characters=7)) == every[4:7]
    scored = [f"k{k:02d}" for k in range(40) if k % 5 != 4 and k >= 30]
    assert keys(indexed, FilterConfig(min_scores=(("similarity", 0.2999),))) == scored
    with pytest.raises(DataError, match="none of its 40 samples passes"):
        keys(indexed, FilterConfig(min_side=1000))
    with pytest.raises(DataError, match="has no numbers named aesthetic; it has similarity"):
        keys(indexed, FilterConfig(min_scores=(("aesthetic", 5.0),)))
    with pytest.raises(DataError, match="needs an index"):
        open_dataset(indexed.with_suffix(""), keep=FilterConfig(min_side=9))


def test_a_mixture_shows_each_set_by_weight_and_each_sample_once_an_epoch(
    indexed: Path, pictures: list[Picture], shard_set: Callable[..., Path]
) -> None:
    small = shard_set(pictures)
    cfg = DataConfig(mix=((str(indexed), 3.0), (str(small), 1.0)))
    dataset = open_for_training(cfg, resolution=8)
    assert len(dataset) == 40 - 4 + 12  # the test split isn't shown

    def take(start: int, count: int) -> list[str]:
        stream = batches(cfg, dataset, resolution=8, batch=16, seed=0, start_nimg=start * 16)
        found = [key for _ in range(count) for key in next(stream).keys]
        stream.close()
        return found

    shown = take(0, 6)
    assert Counter(key[0] for key in shown) == {"0": 72, "1": 24}
    assert set(Counter(shown).values()) == {2}  # two epochs of each set
    assert shown[48:] == take(3, 3)
    with pytest.raises(ConfigError, match=r"data\.path and data\.mix are both set"):
        config.load("tiny", ["data.path=a", "data.mix=[[b, 1]]"])


@pytest.mark.parametrize("damage", [b"", b"x" * 100, b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_index(indexed: Path, damage: bytes) -> None:
    indexed.write_bytes(damage)
    with pytest.raises(DataError, match="isn't a whole index"):
        open_dataset(indexed)


def test_a_shard_that_changed_is_told(indexed: Path) -> None:
    shard = indexed.with_suffix("") / "000001.tar"
    shard.write_bytes(shard.read_bytes() + bytes(512))
    dataset = open_dataset(indexed)
    assert dataset[0].key == "k00"
    with pytest.raises(DataError, match="isn't the shard that was indexed"):
        dataset[30]


def test_stats(indexed: Path, tmp_path: Path) -> None:
    told = call("stats", str(indexed), "--out", str(tmp_path / "page.html"))
    assert "shorter side (px): least 8, 1 % 8.39, median 27.5, 99 % 46.61, most 47" in told
    assert "similarity: least 0," in told
    assert "; 8 without" in told
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 4
    assert page.count("<rect") == 4 * 40
    with pytest.raises(ConfigError, match=r"an index is named \*\.index"):
        call("index", str(indexed.with_suffix("")), "--out", str(tmp_path / "x.json"))
