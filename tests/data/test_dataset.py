"""Tar shards, folders and parquet: the same samples, and what happens to bad ones."""

import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gigagan.data.dataset import CaptionedImages, decode, open_dataset, packaged_pictures
from gigagan.data.sources import ParquetSource
from gigagan.data.tar_source import index_shard
from gigagan.errors import DataError

Picture = tuple[str, bytes, str]


def png(color: tuple[int, ...], *, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def everything(dataset: CaptionedImages) -> list[tuple[bytes, str]]:
    samples = [dataset[i] for i in range(len(dataset))]
    return [(sample.image.tobytes(), sample.captions[0].text) for sample in samples]


def as_folder(pictures: list[Picture], folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for key, image, text in pictures:
        (folder / f"{key}.png").write_bytes(image)
        lines.append(json.dumps({"file_name": f"{key}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def as_parquet(pictures: list[Picture], folder: Path, *, struct_column: bool) -> Path:
    folder.mkdir()
    images = [{"bytes": image, "path": key} if struct_column else image for key, image, _ in pictures]
    table = pa.table({"image": images, "text": [text for _, _, text in pictures]})
    pq.write_table(table, folder / "a.parquet", row_group_size=5)
    return folder


def raw_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], *, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_folder_and_parquet_give_the_same_samples(
    pictures: list[Picture], shard_set: Callable[..., Path], tmp_path: Path
) -> None:
    expected = everything(open_dataset(shard_set(pictures), resolution=8))
    assert len(expected) == 12
    assert expected[3][1] == "picture number 3"
    assert everything(open_dataset(as_folder(pictures, tmp_path / "folder"), resolution=8)) == expected
    for name, nested in (("flat", False), ("nested", True)):
        assert (
            everything(open_dataset(as_parquet(pictures, tmp_path / name, struct_column=nested), resolution=8))
            == expected
        )


def test_one_tar_and_one_parquet_file_are_sets_too(
    pictures: list[Picture], shard_set: Callable[..., Path], tmp_path: Path
) -> None:
    shard = shard_set(pictures) / "000000.tar"
    table = as_parquet(pictures, tmp_path / "p", struct_column=False) / "a.parquet"
    assert everything(open_dataset(shard)) == everything(open_dataset(table))
    folder = as_parquet(pictures, tmp_path / "parts.parquet", struct_column=False)  # as Spark names one
    assert everything(open_dataset(folder)) == everything(open_dataset(table))


def test_img2dataset_shards(tmp_path: Path) -> None:
    members = [
        (tarfile.TarInfo("0001.jpg"), png((1, 2, 3))),
        (tarfile.TarInfo("0001.txt"), b"not this one"),
        (tarfile.TarInfo("0001.json"), json.dumps({"caption": "a dot", "width": 8}).encode()),
        (tarfile.TarInfo("0002.png"), png((1, 2, 3))),
        (tarfile.TarInfo("0002.txt"), b" two \n dots"),
        (tarfile.TarInfo("0002.pyd"), b"ignored"),
    ]
    raw_tar(tmp_path / "00000.tar", members)
    assert [text for _, text in everything(open_dataset(tmp_path))] == ["a dot", "two dots"]


def test_lines_are_counted_as_an_editor_does(
    pictures: list[Picture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = as_folder(pictures, tmp_path / "folder")
    path = folder / "metadata.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, "", "", "{", *rest]), encoding="utf-8-sig")  # as Windows' editor writes it
    dataset = open_dataset(folder)
    assert len(dataset) == 12
    assert [fault.name for fault in dataset.faults] == ["metadata.jsonl line 4"]
    assert "1 samples can't be used (first metadata.jsonl line 4" in caplog.text


def test_threads_read_one_parquet_file(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many row groups, of which a few are kept at a time."""
    count = 2000
    table = pa.table({"image": [pictures[0][1]] * count, "text": [f"picture {i}" for i in range(count)]})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=20)
    monkeypatch.setattr(ParquetSource, "CACHE_BYTES", 20_000)
    source = open_dataset(tmp_path / "many.parquet").source
    with ThreadPoolExecutor(8) as pool:
        texts = [record.captions[0].text for record in pool.map(source.read, range(count))]
    assert texts == [f"picture {i}" for i in range(count)]
    assert len(pickle.loads(pickle.dumps(source)).read(7).image)


def test_hidden_folders_hold_no_pictures(pictures: list[Picture], tmp_path: Path) -> None:
    for place in ("a", "b", ".c", "a/.ipynb_checkpoints"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").write_bytes(pictures[0][1])
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("a", "b")
    assert [dataset.key(i) for i in range(len(dataset))] == ["a/1.png", "b/1.png"]


def test_center_of_the_shorter_side_is_kept() -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = decode(buffer.getvalue(), 5)
    assert found.shape == (5, 5, 3)
    assert (found == [0, 0, 255]).all()
    assert decode(buffer.getvalue(), None).shape == (10, 30, 3)


def test_a_picture_is_reduced_by_an_antialiased_filter() -> None:
    """A board of black and white fields is gray from afar."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    buffer = io.BytesIO()
    Image.fromarray(np.stack([board] * 3, axis=2).astype(np.uint8)).save(buffer, "PNG")
    assert np.abs(decode(buffer.getvalue(), 8).astype(int) - 127).max() <= 16


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_mode_of_the_three_formats(mode: str, kind: str) -> None:
    image = Image.new("L", (6, 4), 255).convert(mode) if mode != "I;16" else Image.new("I;16", (6, 4), 65535)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError):
        pytest.skip("the format has no such mode")
    found = decode(buffer.getvalue(), 4)
    assert found.dtype == np.uint8
    assert found.shape[:2] == (4, 4)
    assert found[..., :3].min() > 250


def test_orientation_is_followed() -> None:
    image = Image.new("RGB", (16, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    found = decode(buffer.getvalue(), None)
    assert found[2, 8].max() < 30
    assert found[13, 8].min() > 225


def _bomb(side: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "isn't a whole"),
        (b"GIF89a" + bytes(100), "isn't a whole"),
        (png((1, 2, 3), size=(64, 64))[:-40], "isn't a whole"),
        (_bomb(9000), "too large"),
        (_bomb(65000), "isn't a whole|too large"),
    ],
)
def test_bad_pictures_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(content, 8)


@pytest.mark.parametrize("value", ["", "  ", None, 5, [], [""], "x" * 10_001, "a\0b", {"text": 1}])
def test_bad_captions_are_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": value}))
    with pytest.raises(DataError, match=r"a\.png.*caption"):
        open_dataset(tmp_path)[0]


def test_several_captions_and_backgrounds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    text = ["one", {"text": "two", "styled": False, "background": [0, 10, 255]}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}))
    first, second = open_dataset(tmp_path)[0].captions
    assert (first.text, first.styled, first.background) == ("one", True, None)
    assert (second.text, second.styled, second.background) == ("two", False, (0, 10, 255))


@pytest.mark.parametrize("name", ["../a.png", "/etc/hostname", "link.png", "gone.png", "a\0.png"])
def test_files_outside_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
    with pytest.raises(DataError):
        open_dataset(folder)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no metadata.jsonl"),
        (lambda path: (path.mkdir(), (path / "metadata.jsonl").touch()), "holds no picture"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "isn't a manifest"),
        (lambda path: path.write_bytes(b"x"), "holds no metadata.jsonl"),
        (lambda path: (path.mkdir(), (path / "a.parquet").write_bytes(b"x")), "1 of 1 shards are bad"),
    ],
)
def test_a_set_that_is_none(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_truncated_shard_stops_a_small_set_but_not_a_large_one(
    pictures: list[Picture], shard_set: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    few = shard_set(pictures, shards=2, name="few")
    cut = few / "000001.tar"
    cut.write_bytes(cut.read_bytes()[:2500])
    with pytest.raises(DataError, match=r"1 of 2 shards are bad \(first 000001.tar: truncated"):
        open_dataset(few)
    assert 6 < len(open_dataset(few, strict=False)) < 12  # what comes before the cut is kept

    samples = [(f"{i}-{key}", image, text) for i in range(10) for key, image, text in pictures]
    many = shard_set(samples, shards=120, name="many")
    (many / "000007.tar").write_bytes(b"garbage" * 500)
    assert len(open_dataset(many)) == 119
    assert "000007.tar" in caplog.text


def test_hostile_members_are_passed_over(tmp_path: Path) -> None:
    good = [
        (tarfile.TarInfo("good.png"), png((1, 2, 3))),
        (tarfile.TarInfo("good.txt"), b"good"),
    ]
    bad = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo(f"special{kind!r}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        bad.append((info, b""))
    names = ["../../evil", "/abs", "C:\\x", "a" * 4000, "\u202egnp", "n\x07b"]
    for name in names:
        bad += [(tarfile.TarInfo(f"{name}.png"), png((1, 2, 3))), (tarfile.TarInfo(f"{name}.txt"), b"x")]
    bad.append((tarfile.TarInfo("evil.pyd"), b"cos\nsystem\n(S'touch /tmp/evil'\ntR."))
    raw_tar(tmp_path / "a.tar", [*bad, *good])

    dataset = open_dataset(tmp_path)
    keys = [dataset.key(i) for i in range(len(dataset))]
    assert keys[-1] == "good"
    assert len(keys) == len(names) + 1
    assert all(key.isascii() and key.isprintable() and len(key) <= 200 for key in keys)
    assert [dataset[i].image.shape for i in range(len(dataset))] == [(8, 8, 3)] * len(keys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.tar.index.json"]


def test_long_names_in_each_tar_format(tmp_path: Path) -> None:
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = f"{'x' * 150}-\u00e9"
        members = [(tarfile.TarInfo(f"{name}.png"), png((1, 2, 3))), (tarfile.TarInfo(f"{name}.txt"), b"x")]
        index = index_shard(raw_tar(tmp_path / f"{format_}.tar", members, format=format_))
        assert index.broken == ""
        assert index.keys == [f"{'x' * 150}-\\xe9"]


def test_a_pax_bomb_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"comment": "x" * 2**20}
    index = index_shard(raw_tar(tmp_path / "a.tar", [(info, png((1, 2, 3)))]))
    assert "extended header" in index.broken


def test_samples_without_a_half_or_twice_are_named(tmp_path: Path) -> None:
    members = [
        (tarfile.TarInfo("a.png"), png((1, 2, 3))),
        (tarfile.TarInfo("b.txt"), b"b"),
        (tarfile.TarInfo("c.png"), png((1, 2, 3))),
        (tarfile.TarInfo("c.txt"), b"c"),
        (tarfile.TarInfo("c.txt"), b"c again"),
    ]
    index = index_shard(raw_tar(tmp_path / "a.tar", members))
    assert index.keys == ["c"]
    assert {fault.name for fault in index.faults} == {"a", "b", "c"}


def test_index_is_reused_renewed_and_not_needed(pictures: list[Picture], shard_set: Callable[..., Path]) -> None:
    folder = shard_set(pictures)
    shard, beside = folder / "000000.tar", folder / "000000.tar.index.json"
    first = index_shard(shard)
    stored = beside.read_bytes()
    assert index_shard(shard).keys == first.keys
    assert beside.read_bytes() == stored

    for damaged in (b"", b"{}", b'{"version": 1}', stored.replace(b'"k00"', b'"k00", "x"')):
        beside.write_bytes(damaged)
        assert index_shard(shard).keys == first.keys
        assert beside.read_bytes() == stored

    other = shard_set([(f"new{key}", image, text) for key, image, text in pictures], name="other") / "000000.tar"
    shard.write_bytes(other.read_bytes())
    assert index_shard(shard).keys == [f"new{key}" for key in first.keys]

    beside.unlink()
    beside.mkdir()  # can't be written: kept in memory
    assert index_shard(shard).keys == [f"new{key}" for key in first.keys]


def test_every_truncation_of_a_shard_is_noticed(pictures: list[Picture], shard_set: Callable[..., Path]) -> None:
    shard = shard_set(pictures[:2]) / "000000.tar"
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end, 97):
        shard.write_bytes(whole[:length])
        index = index_shard(shard)
        assert index.broken
        assert set(index.keys) <= {"k00", "k01"}


def test_the_packages_own_pictures() -> None:
    dataset = open_dataset(packaged_pictures(), split="train", resolution=16)
    styles = {str(dataset[i].meta["style"]) for i in range(len(dataset))}
    assert len(dataset) == 72
    assert len(styles) == 9
    assert (packaged_pictures() / "NOTICE").is_file()
