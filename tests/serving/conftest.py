"""Real servers on real sockets, with the shipped model unless a test says otherwise."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

# Limits that the command leaves alone are set as a program would.
PROGRAM = """
import json, logging, sys
from gigagan.serving.limits import Limits
from gigagan.serving.safety import load_checker
from gigagan.serving.server import Server, serve
from gigagan.serving.service import Service
limits, keys = json.loads(sys.argv[1]), tuple(json.loads(sys.argv[2]))
safety = load_checker(sys.argv[3]) if sys.argv[3] else None
model = {"path": "emoji", "upsampled": "upscale_pixels" in limits}
service = Service("emoji", model, Limits(**limits), safety=safety)
logging.basicConfig(level=logging.INFO)
serve(Server(service, hosts=(), keys=keys), "127.0.0.1", 0, lambda address: print(address, flush=True))
"""


@dataclass
class Running:
    """A server that is ready."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def worker(self) -> int:
        """The process that holds the model."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if not path.exists():
            pytest.skip("needs /proc")
        children = [int(pid) for pid in path.read_text().split()]
        return next(p for p in children if b"gigagan.serving.worker" in Path(f"/proc/{p}/cmdline").read_bytes())

    def metric(self, name: str) -> float:
        """The sum over labels."""
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.root}/health/ready").status_code == 200
        return False

    def wait_ready(self, seconds: float) -> float:
        started = time.monotonic()
        while not self.ready():
            assert time.monotonic() - started < seconds, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return time.monotonic() - started


@contextlib.contextmanager
def running(
    folder: Path, *command: str, environment: dict[str, str] | None = None, tracebacks: int = 0
) -> Iterator[Running]:
    log = folder / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # As many threads as the tests themselves: another number may change a pixel's last bit.
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        ) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), log.read_text()
            yield Running(process, url, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
    assert log.read_text().count("Traceback") == tracebacks, log.read_text()[-5000:]


def limited(
    folder: Path, keys: tuple[str, ...] = (), safety: str = "", **limits: Any
) -> contextlib.AbstractContextManager[Running]:
    """`safety`: of a module in the folder."""
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return running(folder, "-c", PROGRAM, json.dumps(limits), json.dumps(keys), safety, environment=environment)


@pytest.fixture
def launch() -> Any:
    """Starts a command that serves."""
    return running


@pytest.fixture
def launch_limited() -> Any:
    """Starts a server with keys and limits that tests can wait for."""
    return limited


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The command as a user starts it."""
    with running(tmp_path_factory.mktemp("serve"), "-m", "gigagan", "serve", "--port", "0") as found:
        yield found
