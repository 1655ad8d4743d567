"""Clients of a server: each asks for a picture, and asks again at once."""

import threading
import time
from typing import NamedTuple

import httpx

PROMPT = "a 3D render of a red apple"


class Served(NamedTuple):
    """What clients saw."""

    per_sec: float
    """Pictures."""
    p50_sec: float
    """Of a request."""
    p99_sec: float


def served(url: str, clients: int, seconds: float, **more: object) -> Served:
    """Of a service at `url` (that OpenAI's client is given); `more`: fields of every request."""
    waits: list[list[float]] = [[] for _ in range(clients)]
    end = time.monotonic() + seconds

    def ask(n: int) -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < end:
                body = {"prompt": PROMPT, "seed": 10_000 * n + len(waits[n]), **more}
                asked = time.monotonic()
                client.post(f"{url}/images/generations", json=body).raise_for_status()
                waits[n].append(time.monotonic() - asked)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    took = sorted(wait for one in waits for wait in one)
    return Served(len(took) / elapsed, *(took[len(took) * percent // 100] for percent in (50, 99)))
