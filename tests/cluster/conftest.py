"""A local cluster of two replicas, started by the command; its processes are known by a variable that they inherit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

QUEUE = 8


class Marked:
    """The processes that descend from a command."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        """To start the command with."""
        # As many threads as the tests themselves: another number may change a pixel's last bit.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | {"OMP_NUM_THREADS": "1", "GIGAGAN_MARK": self.mark}

    def titles(self) -> dict[int, str]:
        """What each calls itself."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # another user's, or gone
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
        return found

    def wait_gone(self, seconds: float) -> None:
        """No orphans, but for Ray's agents of a node, which look for their parent now and then."""
        deadline = time.monotonic() + seconds
        while left := [title for title in self.titles().values() if "Agent" not in title]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture
def marked() -> Marked:
    return Marked()


@dataclass
class Running:
    """A service that is ready."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    marked: Marked

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def models(self) -> list[int]:
        """The processes of the replicas."""
        return [pid for pid, title in self.marked.titles().items() if "ServeReplica:gigagan:Model" in title]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    marked = Marked()
    command = [sys.executable, "-m", "gigagan", "serve", "--ray", "--replicas", "2", "--port", "0"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--queue", str(QUEUE)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=marked.environment,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), log.read_text()
            running = Running(process, url, log, marked)
            deadline = time.monotonic() + 60
            while len(running.models()) < 2 or httpx.get(f"{running.root}/health/ready").status_code != 200:
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
    assert process.returncode == 0, log.read_text()[-3000:]
    marked.wait_gone(10)
