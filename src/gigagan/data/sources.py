"""Where samples are kept: tar shards, a folder with metadata.jsonl, parquet. Bytes and captions by index, undecoded.

Nothing a set holds is ever run, unpickled or used as a path to write to; a member of a tar is read by its offset.
"""

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from gigagan.data.captions import Caption
from gigagan.data.places import is_far, patiently, read_bytes, size_of
from gigagan.errors import DataError, MissingExtra

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# A caption is a sentence; a book in its place is a mistake or an attack.
MAX_CAPTION_CHARACTERS = 10_000


@dataclass(frozen=True)
class Record:
    """A sample as stored."""

    key: str
    image: bytes
    captions: tuple[Caption, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something that can't be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source(Protocol):
    """Random access to the samples of one split."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Name of a sample."""

    def read(self, index: int) -> Record:
        """A sample. Raises DataError where it can't be used."""


def split_named(meta: Mapping[str, Any]) -> str:
    """The split that a sample names, empty where it names none."""
    value = meta.get("split")
    return "" if value is None else str(value)


def filled(splits: Sequence[str]) -> list[str]:
    """The split of each sample, given the one it names: where any names one, those that name none are train."""
    return [name or "train" for name in splits] if any(splits) else list(splits)


def read_inside(folder: Path, path: Path) -> bytes:
    """A whole file of a folder. Raises DataError where it can't be read or is a link to outside."""
    if not is_far(path) and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path.name} is a link to outside the folder")
    try:
        return read_bytes(path, 0, size_of(path))
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None


def parse_captions(value: Any) -> tuple[Caption, ...]:
    """Captions out of JSON: a text, texts, or objects with text, styled, background. Raises DataError."""
    entries = value if isinstance(value, list) else [value]
    found = []
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {"text": entry}
        text, background = fields.get("text"), fields.get("background")
        if not isinstance(text, str) or not text.strip():
            raise DataError("a caption is empty or isn't text")
        if len(text) > MAX_CAPTION_CHARACTERS:
            raise DataError(f"a caption has {len(text):,} characters; at most {MAX_CAPTION_CHARACTERS:,} are taken")
        if "\0" in text:
            raise DataError("a caption holds a NUL character")
        if background is not None:
            background = _rgb(background)
        found.append(Caption(" ".join(text.split()), background, bool(fields.get("styled", True))))
    if not found:
        raise DataError("there is no caption")
    return tuple(found)


def _rgb(value: Any) -> tuple[int, int, int]:
    if not (isinstance(value, list) and len(value) == 3 and all(type(c) is int and 0 <= c <= 255 for c in value)):
        raise DataError(f"a caption's background is {str(value)[:40]}; expected [r, g, b] of 0 to 255")
    red, green, blue = value
    return red, green, blue


class FolderSource:
    """Image files and metadata.jsonl: a line a picture, {"file_name": ..., "text": ..., more}."""

    def __init__(self, folder: Path, *, split: str) -> None:
        path = folder / "metadata.jsonl"
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                    raise ValueError('expected {"file_name": ..., "text": ...}')
            except ValueError as error:
                self.faults.append(Fault(f"{path.name} line {number}", " ".join(str(error).split())))
                continue
            self.rows.append(row)
        splits = filled([split_named(row) for row in self.rows])
        self.splits = set(splits) - {""}
        if split and self.splits:
            self.rows = [row for row, name in zip(self.rows, splits, strict=True) if name == split]

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return str(self.rows[index]["file_name"])

    def read(self, index: int) -> Record:
        row = self.rows[index]
        path = Path(row["file_name"])
        if path.is_absolute() or ".." in path.parts or "\0" in row["file_name"]:
            raise DataError("file_name points outside the folder")
        image = read_inside(self.folder, self.folder / path)
        captions = parse_captions(row.get("text", row.get("caption")))
        return Record(self.key(index), image, captions, _meta(row, "file_name", "text", "caption"))


class ParquetSource:
    """Parquet files with a column of image bytes (bytes, or a struct with them) and one of text."""

    # Decoded row groups kept, so that neighbours aren't read again; a shuffled order wants small row groups.
    CACHE_BYTES = 256 * 2**20

    def __init__(self, files: Sequence[Path], *, split: str) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtra("pyarrow", "data")
        self.files = list(files)
        self.faults: list[Fault] = []
        self.splits: set[str] = set()
        self.places: list[tuple[int, int, int]] = []
        """File, row group and row of each sample."""
        self._tables: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = Lock()
        all_places: list[tuple[int, int, int]] = []
        splits: list[str] = []
        for number, path in enumerate(self.files):
            try:
                rows = patiently(partial(self._scan, number), path)
                all_places += [place for place, _ in rows]
                splits += [name for _, name in rows]
            except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
                self.faults.append(Fault(path.name, " ".join(str(error).split())[:200]))
        splits = filled(splits)
        self.splits = set(splits) - {""}
        wanted = split if self.splits else ""
        self.places = [place for place, name in zip(all_places, splits, strict=True) if not wanted or name == wanted]

    def __len__(self) -> int:
        return len(self.places)

    def key(self, index: int) -> str:
        number, group, row = self.places[index]
        return f"{self.files[number].name}:{group}:{row}"

    def read(self, index: int) -> Record:
        number, group, row = self.places[index]
        try:
            values = {name: column[row].as_py() for name, column in self._columns(number, group).items()}
        except (OSError, ValueError) as error:
            raise DataError(" ".join(str(error).split())[:200]) from None
        image_name, text_name = _image_column(list(values)), _text_column(list(values))
        image = values[image_name]
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise DataError(f"column {image_name} holds no bytes")
        meta = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
        return Record(self.key(index), image, parse_captions(values[text_name]), _meta(meta, image_name, text_name))

    def _scan(self, number: int) -> list[tuple[tuple[int, int, int], str]]:
        """Place and split of each row of a file."""
        found = []
        with self._file(number) as file:
            names = file.schema_arrow.names
            _image_column(names), _text_column(names)
            for group in range(file.num_row_groups):
                splits = [""] * file.metadata.row_group(group).num_rows
                if "split" in names:
                    values = file.read_row_group(group, ["split"])["split"].to_pylist()
                    splits = [split_named({"split": value}) for value in values]
                found += [((number, group, row), split) for row, split in enumerate(splits)]
        return found

    def _file(self, number: int) -> Any:
        from pyarrow.parquet import ParquetFile

        path = self.files[number]
        return ParquetFile(path.open("rb") if is_far(path) else path)

    def _row_group(self, number: int, group: int) -> Any:
        with self._file(number) as file:
            try:
                return file.read_row_group(group)
            except OSError as error:
                if type(error) is OSError and error.errno is None:  # Arrow's own, of pages that are damaged
                    raise ValueError(str(error)) from None
                raise

    def _columns(self, number: int, group: int) -> dict[str, Any]:
        with self._lock:  # threads that ask for one group read it once
            table = self._tables.get((number, group))
            if table is None:
                table = patiently(lambda: self._row_group(number, group), self.files[number])
                self._tables[number, group] = table
                while len(self._tables) > 1 and sum(kept.nbytes for kept in self._tables.values()) > self.CACHE_BYTES:
                    self._tables.popitem(last=False)
            else:
                self._tables.move_to_end((number, group))
        return {name: table[name] for name in table.column_names}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_tables", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_tables": OrderedDict(), "_lock": Lock()}


def _image_column(names: Sequence[str]) -> str:
    return _column(names, ("image", "img", "jpg", "png", "webp", "bytes"))


def _text_column(names: Sequence[str]) -> str:
    return _column(names, ("text", "caption", "captions"))


def _column(names: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"columns are {', '.join(names)[:120]}; expected one of {', '.join(wanted)}")


def _meta(row: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in left_out}


def _lines(path: Path) -> list[str]:
    try:
        text = patiently(lambda: path.read_text(encoding="utf-8-sig", errors="replace"), path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}); check its permissions") from None
    return text.split("\n")
