"""Clients of a server: each asks for a picture, and asks again at once."""

import threading
import time

import httpx

PROMPT = "a 3D render of a red apple"


def served(url: str, clients: int, seconds: float, **more: object) -> float:
    """Pictures a second of a service at `url` (that OpenAI's client is given); `more`: fields of every request."""
    counts = [0] * clients
    end = time.monotonic() + seconds

    def ask(n: int) -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < end:
                body = {"prompt": PROMPT, "seed": 1000 * n + counts[n], **more}
                client.post(f"{url}/images/generations", json=body).raise_for_status()
                counts[n] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)
