"""A run directory is one run's at a time: two that write into it would delete each other's states."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gigagan import dist
from gigagan.errors import GigaGANError

NAME = ".claim"


@contextmanager
def claimed(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Inside, what is yielded claims the directory, if it is there; a claim ends with its process, however that ends.

    The first rank's alone. Raises GigaGANError where another process has the claim, on whatever machine (NFS too).
    """
    held: list[int] = []

    def claim() -> None:
        if held or dist.rank() or not run_dir.is_dir():
            return
        held.append(os.open(run_dir / NAME, os.O_RDWR | os.O_CREAT, 0o666))
        try:
            fcntl.lockf(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # as systems have it
            raise GigaGANError(
                f"{run_dir}: another process trains there; wait for it, stop it, or give a new --run-dir"
            ) from None
        except OSError:
            pass  # a file system without locks

    try:
        yield claim
    finally:
        for descriptor in held:
            os.close(descriptor)
