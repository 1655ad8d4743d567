"""A run directory is one run's at a time: two that write into it would delete each other's states."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gigagan import dist
from gigagan.errors import GigaGANError

PATIENCE_SEC = 5.0
"""What a run that was killed leaves behind it (readers of data) lives a moment longer, and its claim as well."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Inside, what is yielded claims the directory, if it is there; a claim ends with its process, however that ends.

    The first rank's alone. Raises GigaGANError where another process has the claim.
    """
    held: list[int] = []

    def claim() -> None:
        if not held and dist.rank() == 0 and run_dir.is_dir():
            held.append(os.open(run_dir, os.O_RDONLY))
            _lock(held[0], run_dir)

    try:
        yield claim
    finally:
        for descriptor in held:
            os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    end = time.monotonic() + PATIENCE_SEC
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise GigaGANError(
                    f"{run_dir}: another process trains there; wait for it, stop it, or give a new --run-dir"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return None
