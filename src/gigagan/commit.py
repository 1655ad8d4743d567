"""Directories that are whole at every instant: written beside, flushed to the disk, then renamed into place."""

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
BETWEEN_SEC = 0.2
"""More than a writer takes from one rename to the next."""


@contextmanager
def committed(path: Path, ours: Collection[str] | None = None) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends well, and vanishes when not.

    What lies in the old one under other names than `ours` stays; None = all of it is ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path)
    delete_stale(path.parent, re.escape(path.name))
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        if ours is not None:
            _copy_others(path, temporary, ours)
        for file in [*temporary.rglob("*"), temporary]:
            if not file.is_symlink():
                sync(file)
        _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    # No portable call exchanges two directories: the old one steps aside, and comes back (`settle`) if this stops.
    old = path.parent / f".{path.name}.replaced"
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)  # a reader's `settle` may be at it too


def _copy_others(path: Path, new: Path, ours: Collection[str]) -> None:
    """What isn't ours to delete is in the new directory before the old one goes, whenever this stops."""
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.name in ours:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def settle(path: Path) -> None:
    """Finish a replacement that was cut off between its two renames."""
    old = path.parent / f".{path.name}.replaced"
    if not old.is_dir():
        return
    if not path.exists():
        time.sleep(BETWEEN_SEC)  # a writer that lives is between its two renames
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        log.warning("%s: a save was cut off; took the one before", path)
        os.rename(old, path)


def delete_stale(folder: Path, name: str) -> None:
    """What saves of `name` (a pattern) left behind when their process died."""
    for stale in folder.iterdir():
        if re.fullmatch(rf"\.tmp-{name}-\d+-[0-9a-f]{{8}}", stale.name):
            shutil.rmtree(stale, ignore_errors=True)


def sync(path: Path) -> None:
    """Make a file or directory reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
