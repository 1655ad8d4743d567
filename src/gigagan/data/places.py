"""Where files are: on this machine or behind a URL (S3, HTTP and whatever else fsspec reads), as paths of one kind.

What fails far away is tried again, since that is common there; doing it twice changes nothing.
"""

import errno
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gigagan.errors import DataError, MissingExtra, Outage

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Others are refused: `file:` is a path without a scheme, and nothing that runs a program is read."""
TRIES = 6
FIRST_WAIT_SEC = 0.1
GIVE_UP_SEC = 10.0
"""No try begins later: where an error comes late, it comes late each time."""
FOR_NOW = (408, 425, 429)
"""HTTP answers of the kind that blames the asker, but that are another one later."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}")

T = TypeVar("T")


def place(path: Path | str) -> Path:
    """The path, or of a URL what behaves like one. Raises DataError for a scheme that isn't read."""
    scheme, separator, _ = str(path).partition("://")
    if isinstance(path, Path) or not separator:
        return path if isinstance(path, Path) else Path(path)
    if scheme not in SCHEMES:
        raise DataError(f"{path}: {scheme}:// isn't read; give a path or one of {', '.join(SCHEMES)}")
    try:
        from upath import UPath

        far: Any = UPath(path)
        _ = far.fs
    except ImportError as error:
        package = "universal-pathlib" if error.name == "upath" else f"what {scheme}:// needs ({error})"
        raise MissingExtra(package, "data") from None
    chosen: Path = far
    return chosen


def is_far(path: Path) -> bool:
    """Whether it is behind a URL."""
    return hasattr(path, "fs") and not isinstance(path, type(Path()))


def read_bytes(path: Path, offset: int, size: int) -> bytes:
    """A part of a file; the one place that reads a set's pictures. Raises DataError where the file is shorter."""
    content = patiently(lambda: _read(path, offset, size), path)
    if len(content) != size:
        raise DataError(f"{path}: ends {size - len(content)} bytes early; get the file again")
    return content


class Opened:
    """A file from front to back, in pieces of some size where it is far: what is passed over costs little."""

    def __init__(self, path: Path, *, piece: int = 2**18) -> None:
        self.path, self.size, self.piece = path, size_of(path), piece
        self._offset, self._start, self._held = 0, 0, b""

    def seek(self, offset: int) -> None:
        """The next read begins here."""
        self._offset = offset

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end of the file."""
        size = max(min(size, self.size - self._offset), 0)
        begin = self._offset - self._start
        if not 0 <= begin <= begin + size <= len(self._held):
            length = min(max(size, self.piece), self.size - self._offset)
            self._start, self._held = self._offset, read_bytes(self.path, self._offset, length)
            begin = 0
        self._offset += size
        return self._held[begin : begin + size]


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return patiently(lambda: int(path.stat().st_size), path)


def exists(path: Path) -> bool:
    """Whether there is a file or folder. Raises DataError where a server doesn't say, Outage where it is silent."""
    if not is_far(path):
        return path.exists()
    far: Any = path
    try:
        patiently(lambda: far.fs.info(far.path), path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error}); check its permissions") from None
    return True


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of names; empty where it is none. Raises DataError as `exists`.

    Whoever looks for a file of some name far away looks here: fsspec takes an answer that is an error for a no.
    """
    if not is_far(folder):
        return sorted(folder.iterdir()) if folder.is_dir() else []
    far: Any = folder
    inside = far.path.rstrip("/") + "/"
    try:
        found = patiently(lambda: far.fs.ls(far.path, detail=False), folder)
        return sorted(folder / name.removeprefix(inside).rstrip("/") for name in found if name.startswith(inside))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error}); check its permissions") from None


def sweep(folder: Path) -> None:
    """Remove what writers of whole files left half done in a folder when they were killed."""
    if is_far(folder):
        return  # nothing half done is seen there
    for path in entries(folder):
        if TEMPORARY.fullmatch(path.stem):
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, *, new: bool = False) -> None:
    """All of a file or nothing, in place of what was there. Raises as `whole` does, which is for this machine alone."""
    if is_far(path):
        far: Any = path
        patiently(lambda: far.fs.pipe_file(far.path, content), path)
        return
    with whole(path, new=new) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well, and vanishes when not.

    Of a `new` one raises FileExistsError where the name is taken by then.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if new:
            rename_new(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename_new(temporary: Path, path: Path) -> None:
    """Give a whole file its name. Raises FileExistsError, and the temporary one stays, where another has that name."""
    try:
        os.link(temporary, path)  # unlike a rename it takes no other file's place
    except FileExistsError:
        raise
    except OSError:  # no hard links: vfat, exFAT, some shares; only whoever comes between the next two calls loses
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)
    else:
        temporary.unlink()


def patiently(read: Callable[[], T], path: Path) -> T:
    """What `read` gives; of a far file, it is tried again for some seconds, with growing waits.

    Raises OSError for what is wrong with the file itself: it is missing, refused or damaged. Raises Outage where it
    is far and anything else fails.
    """
    end = time.monotonic() + GIVE_UP_SEC
    for number in range(TRIES):
        try:
            return read()
        except Exception as error:  # each file system has errors of its own
            if not is_far(path):
                raise
            if (fault := _of_the_file(error, path)) is not None:
                raise fault from None
            if number == TRIES - 1 or time.monotonic() > end:
                raise Outage(f"{path}: can't be reached ({_line(error)}); try again later") from None
            time.sleep(FIRST_WAIT_SEC * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError


def _of_the_file(error: Exception, path: Path) -> OSError | None:
    """The error where it is the file's own, None where it is an outage.

    Over HTTP fsspec calls every failure a missing file, and what it was is the cause.
    """
    cause = error.__cause__ or error
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        blamed = 400 <= status < 500 and status not in FOR_NOW
        return (FileNotFoundError if status in (404, 410) else PermissionError)(_line(cause)) if blamed else None
    if isinstance(error, ValueError):  # it was read, and makes no sense
        return OSError(_line(error))
    if isinstance(error, FileNotFoundError):
        return error if cause is error or not str(path).startswith("http") else None
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError):
        return error
    # EINVAL is what s3fs makes of a request that can't be met, such as a place behind the end.
    return error if isinstance(error, OSError) and error.errno == errno.EINVAL else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read(path: Path, offset: int, size: int) -> bytes:
    if is_far(path):
        far: Any = path
        content: bytes = far.fs.cat_file(far.path, start=offset, end=offset + size) if size else b""
        return content
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
