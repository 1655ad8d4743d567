"""Whose turn it is at the model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock that whoever had it can't have again before one who waits: threading's goes to the fastest."""

    def __init__(self) -> None:
        self._first = threading.Lock()
        self._now = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits."""
        with self._first:  # of those who wait, one; it keeps this until it has the other
            self._now.acquire()
        try:
            yield
        finally:
            self._now.release()
