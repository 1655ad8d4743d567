"""Random access to the samples of tar shards: their headers are read once, into an index kept beside the shard.

Of a tar only plain files are used, by offset. Links, devices and directories are passed over, names are never paths.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from gigagan.data.places import Opened, is_far, patiently, read_bytes, size_of
from gigagan.data.sources import IMAGE_SUFFIXES, Fault, Record, parse_captions
from gigagan.errors import DataError

INDEX_VERSION = 1
BLOCK = tarfile.BLOCKSIZE
# Longest extended header (a long name or PAX records) that is read; real ones are below a kilobyte.
MAX_EXTENDED_BYTES = 65536
MAX_TEXT_BYTES = 2**20
MAX_KEY_CHARACTERS = 200


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard are."""

    path: Path
    keys: list[str]
    places: Int[np.ndarray, "samples 5"]
    """Offset and size of the picture, offset and size of the text, 1 where the text is JSON."""
    faults: list[Fault]
    """Samples that can't be used."""
    broken: str = ""
    """Why the shard can't be read to its end, or empty."""


def index_shard(path: Path) -> ShardIndex:
    """The index of a shard: from the file beside it where that still fits, else from the shard, and then written."""
    try:
        fingerprint = fingerprint_of(path)
    except OSError as error:
        return ShardIndex(path, [], np.zeros((0, 5), np.int64), [], error.strerror or str(error))
    beside = path.with_name(f"{path.name}.index.json")
    return _read_index(path, beside, fingerprint) or _scan_and_write(path, beside, fingerprint)


def fingerprint_of(path: Path) -> str:
    """Size of a file and a hash of both ends: one that was exchanged isn't read with the old index."""
    size = size_of(path)
    head, tail = read_bytes(path, 0, min(size, 65536)), read_bytes(path, max(0, size - 65536), min(size, 65536))
    return f"{size}-{hashlib.sha256(head + tail).hexdigest()[:32]}"


def _read_index(path: Path, beside: Path, fingerprint: str) -> ShardIndex | None:
    try:
        stored = json.loads(patiently(lambda: beside.read_text(encoding="utf-8"), beside))
        if stored["version"] != INDEX_VERSION or stored["fingerprint"] != fingerprint:
            return None
        keys = [str(row[0]) for row in stored["samples"]]
        places = np.array([row[1:] for row in stored["samples"]], np.int64).reshape(len(keys), 5)
        faults = [Fault(str(name), str(reason)) for name, reason in stored["faults"]]
        if (places < 0).any() or (places[:, 3] > MAX_TEXT_BYTES).any():
            return None
        return ShardIndex(path, keys, places, faults, str(stored["broken"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None  # missing or damaged: the shard itself says the same


def _scan_and_write(path: Path, beside: Path, fingerprint: str) -> ShardIndex:
    index = _scan(path)
    stored = {
        "version": INDEX_VERSION,
        "fingerprint": fingerprint,
        "broken": index.broken,
        "faults": [[fault.name, fault.reason] for fault in index.faults],
        "samples": [[key, *place] for key, place in zip(index.keys, index.places.tolist(), strict=True)],
    }
    if is_far(path):  # what is far isn't written to unasked; `gigagan data index` keeps it here
        return index
    temporary = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(stored), encoding="utf-8")
        temporary.replace(beside)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only folder: the index stays in memory
    return index


def _scan(path: Path) -> ShardIndex:
    """Read all headers. What comes before a fault in the shard is kept."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    faults: list[Fault] = []
    broken = ""
    try:
        file = Opened(path)
        for name, offset, size in _members(file, file.size):
            key, suffix = _key(name)
            if suffix not in (*IMAGE_SUFFIXES, ".json", ".txt"):
                continue
            kind = "image" if suffix in IMAGE_SUFFIXES else suffix
            if kind in members.setdefault(key, {}):
                faults.append(Fault(key, f"there is a second {suffix[1:]} of this name"))
            else:
                members[key][kind] = (offset, size)
    except (OSError, DataError, ValueError, tarfile.TarError) as error:
        broken = " ".join(str(error).split()) or type(error).__name__
    keys, places = [], []
    for key, parts in members.items():
        text = parts.get(".json") or parts.get(".txt")
        if "image" not in parts or text is None:
            faults.append(Fault(key, "no caption with the picture" if text is None else "no picture with the caption"))
        elif text[1] > MAX_TEXT_BYTES:
            faults.append(Fault(key, f"the text has {text[1]:,} bytes; at most {MAX_TEXT_BYTES:,} are read"))
        else:
            keys.append(key)
            places.append((*parts["image"], *text, int(".json" in parts)))
    return ShardIndex(path, keys, np.array(places, np.int64).reshape(len(keys), 5), faults, broken)


def _members(file: Opened, length: int) -> Any:
    """Name, offset and size of each plain file of a tar. Raises ValueError or TarError where it isn't whole."""
    offset, long_name, extended_size = 0, "", -1
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if block == bytes(BLOCK):
            return
        if len(block) < BLOCK:
            raise ValueError(f"truncated after {offset:,} bytes (no end-of-archive mark)")
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        size = extended_size if extended_size >= 0 and header.isreg() else header.size
        start = offset + BLOCK
        if size < 0 or start + size > length:
            raise ValueError(f"truncated in the member at byte {offset:,}")
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if size > MAX_EXTENDED_BYTES:
                raise ValueError(f"an extended header of {size:,} bytes; at most {MAX_EXTENDED_BYTES:,} are read")
            content = file.read(size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = _pax(content)
                long_name = records.get("path", long_name)
                extended_size = int(records.get("size", -1))
            continue
        if header.isreg():
            yield long_name or header.name, start, size
        if header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            long_name, extended_size = "", -1


def _pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of a PAX header."""
    records = {}
    while content.strip(b"\0"):
        length = int(content.split(b" ", 1)[0])
        if not 0 < length <= len(content):
            raise ValueError("a PAX header is damaged")
        key, _, value = content[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return records


def _key(name: str) -> tuple[str, str]:
    """'a/b.c.png' -> ('a/b.c', '.png'), printable; a very long one is cut, and told from others by a hash."""
    stem, dot, suffix = name.rpartition(".")
    printable = stem.encode("ascii", "backslashreplace").decode()
    key = "".join(c if c.isprintable() else "?" for c in printable)
    if len(key) > MAX_KEY_CHARACTERS:
        key = f"{key[: MAX_KEY_CHARACTERS - 17]}~{hashlib.sha256(printable.encode()).hexdigest()[:16]}"
    return key, (dot + suffix).lower()


def read_sample(path: Path, key: str, places: Sequence[int]) -> Record:
    """The sample at these places of a shard (`ShardIndex.places`). Raises DataError where it can't be used."""
    image_at, image_size, text_at, text_size, is_json = places
    try:
        image = read_bytes(path, image_at, image_size)
        text = read_bytes(path, text_at, text_size)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    if not is_json:
        return Record(key, image, parse_captions(text.decode("utf-8", "replace")), {})
    try:
        meta: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its JSON can't be read ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(meta, Mapping):
        raise DataError("its JSON isn't an object")
    found = next((meta[name] for name in ("captions", "text", "caption") if name in meta), None)
    rest = {name: value for name, value in meta.items() if name not in ("captions", "text", "caption")}
    return Record(key, image, parse_captions(found), rest)


class TarSource:
    """The samples of several shards."""

    def __init__(self, shards: Sequence[ShardIndex]) -> None:
        self.shards = list(shards)
        self.first = np.concatenate([[0], np.cumsum([len(shard.keys) for shard in self.shards])])

    def __len__(self) -> int:
        return int(self.first[-1])

    def key(self, index: int) -> str:
        shard, row = self._place(index)
        return shard.keys[row]

    def read(self, index: int) -> Record:
        shard, row = self._place(index)
        return read_sample(shard.path, shard.keys[row], shard.places[row].tolist())

    def _place(self, index: int) -> tuple[ShardIndex, int]:
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        return self.shards[shard], index - int(self.first[shard])
