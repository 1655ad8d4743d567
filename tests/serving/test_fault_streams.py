"""Streams when things go wrong: each that began ends in completed or in an error event, never in silence."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.reliability.sets import sizes
from tests.serving.clients import Clients

BODY = {"prompt": "a cat", "n": 3, "stream": True, "partial_images": 2}


class Streams(Clients):
    """Clients that ask for streams; how each ended."""

    def __init__(self, url: str, clients: int) -> None:
        super().__init__(url, clients)
        self.ends: list[str] = []
        """Of each: `completed`; `cut` where it began and didn't end; else the code of its error, or "" where it never
        began since the server listens no more."""
        self.begun = 0
        """Streams that sent a first event, and whether or not they ended."""

    def ask(self, client: httpx.Client) -> None:
        self.ends.append(self._end(client))
        if self.ends[-1] != "completed":
            time.sleep(0.1)

    def _end(self, client: httpx.Client) -> str:
        events: list[dict[str, Any]] = []
        try:
            with client.stream("POST", f"{self.url}/images/generations", json=BODY) as answer:
                if answer.status_code != 200:
                    return str(json.loads(answer.read())["error"]["code"])
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self.begun += not events
                        events.append(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError:
            return "cut" if events else ""
        if "error" in events[-1]:
            return str(events[-1]["error"]["code"])
        completed = [event["image_index"] for event in events if event["type"].endswith("completed")]
        return "completed" if completed == list(range(int(str(BODY["n"])))) else "cut"

    def wait(self, more: int) -> None:
        """Until so many more have begun."""
        aim, deadline = self.begun + more, time.monotonic() + 60
        while self.begun < aim:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
@sizes(2, 30)
def test_streams_whose_worker_dies_say_so(launch_limited: Any, tmp_path: Path, count: int) -> None:
    with launch_limited(tmp_path, upscale_pixels=2**20) as server, Streams(server.url, 4) as streams:
        for _ in range(count):
            streams.wait(4)
            os.kill(server.worker(), signal.SIGKILL)
            server.wait_ready(60)
        streams.wait(4)
    assert set(streams.ends) <= {"completed", "worker_died", "not_ready", "queue_timeout"}
    assert streams.ends.count("completed") >= count
    assert "worker_died" in streams.ends


@pytest.mark.slow
@sizes(2, 50)
def test_streams_outlive_the_signal_to_end(launch_limited: Any, tmp_path: Path, count: int) -> None:
    for number in range(count):
        (folder := tmp_path / str(number)).mkdir()
        with launch_limited(folder, upscale_pixels=2**20) as server, Streams(server.url, 4) as streams:
            streams.wait(4)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(35) == 0
        assert set(streams.ends) <= {"completed", "shutting_down", ""}
        assert streams.ends.count("completed") >= 4
