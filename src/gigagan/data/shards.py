"""Writing webdataset tar shards, byte for byte the same each time, and the manifest beside them.

A sample is two members, KEY.json and KEY.png; a shard holds samples of one split. A set is written beside its final
place and renamed, so that it is there whole or not at all.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gigagan.data.places import patiently
from gigagan.errors import DataError

SAMPLES_PER_SHARD = 1000
MANIFEST = "manifest.json"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `path` when all went well. Raises DataError where `path` holds something."""
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: already there and not empty; give another --out or remove it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}); give another --out") from None
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_shards(
    samples: Iterable[tuple[str, bytes, dict[str, Any]]], folder: Path, *, split: str, first: int
) -> list[dict[str, Any]]:
    """Shards FIRST.tar, FIRST+1.tar, ... of (key, PNG, JSON) samples; their entries in the manifest."""
    entries: list[dict[str, Any]] = []
    buffer, count = io.BytesIO(), 0
    tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def finish() -> None:
        tar.close()
        name = f"{first + len(entries):06d}.tar"
        (folder / name).write_bytes(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        entries.append({"file": name, "split": split, "samples": count, "sha256": digest})

    for key, png, meta in samples:
        if count == SAMPLES_PER_SHARD:
            finish()
            buffer, count = io.BytesIO(), 0
            tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        _add(tar, f"{key}.json", json.dumps(meta, ensure_ascii=False).encode())
        _add(tar, f"{key}.png", png)
        count += 1
    if count:
        finish()
    return entries


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # mtime, owner and group are 0, mode is 0644
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """manifest.json, keys in the order given."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of shards, None where there is none. Raises DataError where it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(patiently(lambda: path.read_text(encoding="utf-8"), path))
        for entry in manifest["shards"]:
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"shard name {entry['file']!r} isn't a plain file name")
            str(entry["split"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: isn't a manifest ({error!r}); remove it or build the set again") from None
    return dict(manifest)
