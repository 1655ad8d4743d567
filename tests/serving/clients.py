"""Clients that ask again and again, side by side, until a block ends."""

import threading
from typing import Self

import httpx


class Clients:
    """As many threads; `ask` is one request of one of them."""

    def __init__(self, url: str, count: int) -> None:
        self.url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(70)
            assert not thread.is_alive(), "a client hangs"

    def _go_on(self) -> None:
        with httpx.Client(timeout=65) as client:
            while not self._stop.is_set():
                self.ask(client)

    def ask(self, client: httpx.Client) -> None:
        raise NotImplementedError
