"""One file that says where every sample of a set is and what it is like; it is opened in milliseconds at any size.

A safetensors file of columns, which are mapped, not read. Of tar shards, near or far, it holds offsets, so that a
sample is a read; of any other set, the numbers alone.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from gigagan.config import FilterConfig
from gigagan.data.places import place, size_of
from gigagan.data.sources import ParquetSource, Record, Source, filled, split_named
from gigagan.data.tar_source import TarSource, fingerprint_of, read_sample
from gigagan.data.tensor_files import save_tensors
from gigagan.errors import DataError

INDEX_SUFFIX = ".index"
FORMAT = "gigagan-index-1"
LARGEST = float(np.finfo(np.float32).max)
"""Of stored scores; others, and what is no number, are as if they weren't there."""
READERS = 8
"""Threads; indexing waits for files, chiefly."""
FACTS = ("width", "height", "characters")
"""Of every sample: sides of the picture in pixels, length of the first caption. Scores have columns of their own."""


def write_index(source: Source, base: Path, out: Path, *, progress: bool = False) -> int:
    """Index the good samples of an open set; how many they are. Samples that can't be used are left out."""
    rows: list[int] = []
    facts: list[tuple[int, int, int]] = []
    splits: list[str] = []
    scores: dict[str, dict[int, float]] = {}
    for row, found in tqdm(_looked_at(source), total=len(source), desc="index", unit="sample", disable=not progress):
        if found is None:
            continue
        size, characters, meta = found
        for name, value in meta.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
                scores.setdefault(f"scores.{name}", {})[len(rows)] = float(value)
        rows.append(row)
        facts.append((*size, characters))
        splits.append(split_named(meta))
    splits = filled(splits)
    names = sorted(set(splits))
    columns: dict[str, np.ndarray] = {name: column for name, column in zip(FACTS, _columns(facts), strict=True)}
    columns["split"] = np.array([names.index(split) for split in splits], np.int32)
    for name, values in scores.items():
        columns[name] = np.full(len(rows), np.nan, np.float32)
        columns[name][list(values)] = list(values.values())
    about: dict[str, Any] = {"base": str(base), "splits": names, "shards": []}
    if isinstance(source, TarSource):
        about["shards"] = [[str(shard.path), size_of(shard.path)] for shard in source.shards]
        columns |= _tar_columns(source, np.array(rows, np.int64))
    else:
        columns["row"] = np.array(rows, np.int64)
        about["order"] = _hash_of_order(source)
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    save_tensors(out, tensors, {FORMAT: json.dumps(about)})
    return len(rows)


def _looked_at(source: Source) -> Iterator[tuple[int, tuple[tuple[int, int], int, Mapping[str, Any]] | None]]:
    """Of each sample its sides, length of its first caption and what else is stored; None where it can't be used."""

    def one(row: int) -> tuple[int, tuple[tuple[int, int], int, Mapping[str, Any]] | None]:
        try:
            record = source.read(row)
        except DataError:  # `gigagan data check` names it
            return row, None
        try:
            with Image.open(io.BytesIO(record.image), formats=("PNG", "JPEG", "WEBP")) as image:
                return row, (image.size, len(record.captions[0].text), record.meta)
        except Exception:  # whatever a decoder makes of a damaged header
            return row, None

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(source), 1024):
            yield from pool.map(one, range(start, min(start + 1024, len(source))))


def _hash_of_order(source: Source) -> str:
    """Of every sample's name in order, of parquet the files: numbers mean what they meant while this is the same."""
    if isinstance(source, ParquetSource):
        names = (f"{path.name} {fingerprint_of(path)}" for path in source.files)
    else:
        names = (source.key(row) for row in range(len(source)))
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _columns(facts: list[tuple[int, int, int]]) -> list[np.ndarray]:
    return [np.ascontiguousarray(column) for column in np.array(facts, np.int32).reshape(-1, len(FACTS)).T]


def _tar_columns(source: TarSource, rows: np.ndarray) -> dict[str, np.ndarray]:
    shard = np.searchsorted(source.first, rows, side="right") - 1
    within = rows - source.first[shard]
    keys = [source.shards[s].keys[r].encode() for s, r in zip(shard.tolist(), within.tolist(), strict=True)]
    return {
        "shard": shard.astype(np.int32),
        "places": np.concatenate([s.places for s in source.shards] or [np.zeros((0, 5), np.int64)])[rows],
        "keys": np.frombuffer(b"".join(keys), np.uint8).copy(),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
    }


class IndexedSource:
    """The samples that an index names, of one split."""

    def __init__(self, path: Path, *, split: str, open_base: Callable[[str], Source]) -> None:
        """Raises DataError where the file isn't an index, where its set can't be opened or isn't what it was."""
        self.path = path
        self._map()
        self.splits = {name for name in self.about["splits"] if name}
        self.num_shards = len(self.about["shards"])
        self.base = None if self.num_shards else open_base(self.about["base"])
        if self.base is not None and _hash_of_order(self.base) != self.about.get("order"):
            told = "isn't the set that was indexed" if "order" in self.about else "was indexed by an earlier version"
            raise DataError(f"{path}: {self.about['base']} {told}; index the set again")
        self.rows: np.ndarray | None = None
        """Samples that are shown, where these aren't all."""
        if split and split in self.splits:
            self.rows = np.flatnonzero(self.column("split") == self.about["splits"].index(split)).astype(np.uint32)

    def _map(self) -> None:
        try:
            with safe_open(self.path, framework="np") as file:
                held = (file.metadata() or {}).get(FORMAT)
                shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                layout = {name: (piece.get_dtype(), piece.get_shape()) for name, piece in shapes.items()}
            self.about: dict[str, Any] = json.loads(held or "null") or {}
            self._data = _mapped(self.path, layout)
            self._shards = [(place(name), int(size)) for name, size in self.about["shards"]]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{self.path}: isn't a whole index ({reason}); make it with `gigagan data index`") from None
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_data", "_shards", "_checked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        return len(self.column("width")) if self.rows is None else len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """A column of all samples, mapped. Raises DataError where there is none of that name."""
        if name not in self._data:
            known = ", ".join(self.scores)
            raise DataError(
                f"{self.path}: has no numbers named {name.removeprefix('scores.')}; it has {known or 'none'}"
            )
        return self._data[name]

    @property
    def scores(self) -> list[str]:
        """Names of the numbers that are stored with samples."""
        return [name.removeprefix("scores.") for name in self._data if name.startswith("scores.")]

    def shown(self, name: str) -> np.ndarray:
        """A column of the samples that are shown."""
        return self.column(name) if self.rows is None else self.column(name)[self.rows]

    def key(self, index: int) -> str:
        row = self._row(index)
        if self.base is not None:
            return self.base.key(int(self._data["row"][row]))
        ends = self._data["key_ends"]
        return bytes(self._data["keys"][int(ends[row - 1]) if row else 0 : int(ends[row])]).decode()

    def read(self, index: int) -> Record:
        row = self._row(index)
        if self.base is not None:
            return self.base.read(int(self._data["row"][row]))
        number = int(self._data["shard"][row])
        path, size = self._shards[number]
        if number not in self._checked:
            try:
                now = size_of(path)
            except OSError as error:
                raise DataError(f"{path.name}: {error.strerror or error}") from None
            if now != size:
                raise DataError(f"{path.name}: isn't the shard that was indexed; index the set again")
            self._checked.add(number)
        return read_sample(path, self.key(index), self._data["places"][row].tolist())

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


def _mapped(path: Path, layout: dict[str, Any]) -> dict[str, np.ndarray]:
    """Views of the columns in the mapped file. The header's checks (bounds, holes, overlaps) are safetensors' own."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    kinds = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32}
    whole = np.memmap(path, np.uint8, mode="r")
    return {
        name: whole[start + header[name]["data_offsets"][0] : start + header[name]["data_offsets"][1]]
        .view(kinds[dtype])
        .reshape(shape)
        for name, (dtype, shape) in layout.items()
    }


def filtered(source: Source, keep: FilterConfig, path: Path) -> Source:
    """An indexed set with only the samples that pass. Raises DataError where the set isn't indexed or none passes."""
    if not isinstance(source, IndexedSource):
        raise DataError(f"{path}: data.keep needs an index; make one with `gigagan data index {path} --out FILE.index`")
    rows = np.arange(len(source.column("width")), dtype=np.uint32) if source.rows is None else source.rows
    source.rows = rows[_passes(source, keep)]
    if not len(source.rows):
        raise DataError(f"{path}: none of its {len(rows):,} samples passes data.keep; lower the limits")
    return source


def _passes(source: IndexedSource, keep: FilterConfig) -> Bool[np.ndarray, " n"]:
    passes = np.minimum(source.shown("width"), source.shown("height")) >= keep.min_side
    characters = source.shown("characters")
    passes &= characters >= keep.min_characters
    if keep.max_characters:
        passes &= characters <= keep.max_characters
    for name, least in keep.min_scores:
        passes &= source.shown(f"scores.{name}") >= least  # a sample without the number doesn't pass
    return np.asarray(passes)
