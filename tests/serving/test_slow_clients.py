"""Clients that read slowly get all of their answers; those that don't read hold nothing for long."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

GENERATIONS = "/images/generations"
KEY = "a-key-of-sixteen-or-more"
LARGE = {"prompt": "noise", "n": 10}
"""Ten megabytes, more than the kernel takes off the server; the shipped model's pictures compress too well."""
PROGRAM = """
import asyncio, json, logging, random, sys
from gigagan.serving.limits import Limits
from gigagan.serving.server import Server, serve
from gigagan.serving.service import Service
from gigagan.serving.wire import Answer, Facts

class Noise:
    facts = Facts("0", "float32", "cpu", "text", (512, 8), 8, 16, 1.0)

    async def draw(self, items):
        return [Answer([(side, random.randbytes(3 * side**2)) for side in item.resolutions]) for item in items]

    async def gone(self):
        await asyncio.Event().wait()

    async def end(self):
        pass

async def start():
    return Noise()

limits, keys = json.loads(sys.argv[1]), tuple(json.loads(sys.argv[2]))
logging.basicConfig(level=logging.INFO)
service = Service("noise", {}, Limits(**limits), start=start)
serve(Server(service, hosts=(), keys=keys), "127.0.0.1", 0, lambda address: print(address, flush=True))
"""


@pytest.fixture
def start(launch: Any, tmp_path: Path) -> Any:
    """Starts a server that draws noise at once."""

    def start(keys: tuple[str, ...] = (), tracebacks: int = 0, **limits: Any) -> Any:
        return launch(tmp_path, "-c", PROGRAM, json.dumps(limits), json.dumps(keys), tracebacks=tracebacks)

    return start


def ask(server: Any, **said: Any) -> socket.socket:
    """A request whose answer the caller reads, or doesn't."""
    body = json.dumps({**LARGE, **said}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", httpx.URL(server.url).port))
    head = f"POST /v1{GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def read(connection: socket.socket, *, pause_sec: float = 0.0) -> bytes:
    """Until the connection ends, 64 KiB after each pause."""
    found = bytearray()
    while True:
        piece = connection.recv(2**16, socket.MSG_WAITALL)
        found += piece
        if not piece:
            return bytes(found)
        time.sleep(pause_sec)


def connections(server: Any) -> int:
    """Sockets that the server holds."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    return sum(str(one.readlink()).startswith("socket:") for one in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_signal_to_end_leaves_a_slow_client_its_answer(start: Any, stream: bool) -> None:
    with start() as server, ask(server, stream=stream) as slow:
        assert slow.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, _, body = read(slow, pause_sec=0.03).partition(b"\r\n\r\n")
        assert time.monotonic() - started > 4, "the answer is too small for this test"
        assert server.process.wait(10) == 0
        if stream:
            assert body.count(b"event: image_generation.completed") == 10
            assert body.endswith(b"\r\n0\r\n\r\n")
        else:
            assert len(json.loads(body)["data"]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_doesnt_read_is_cut(start: Any, stream: bool) -> None:
    with start((KEY,), per_key=1, write_sec=1.0) as server:
        before = connections(server)
        with ask(server, stream=stream) as silent:
            assert silent.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
            assert connections(server) == before + 1
            deadline = time.monotonic() + 15
            while connections(server) > before:
                assert time.monotonic() < deadline, "its connection is held"
                time.sleep(0.1)
            # And its key may ask again.
            answer = httpx.post(
                f"{server.url}{GENERATIONS}",
                json={"prompt": "noise"},
                headers={"authorization": f"Bearer {KEY}"},
                timeout=60,
            )
            assert answer.status_code == 200
            assert "doesn't read its answer" in server.log.read_text()


@pytest.mark.slow
def test_a_client_that_reads_slower_than_the_deadline_in_all_is_not_cut(start: Any) -> None:
    with start(write_sec=1.0) as server, ask(server) as slow:
        started = time.monotonic()
        _, _, body = read(slow, pause_sec=0.03).partition(b"\r\n\r\n")
        assert time.monotonic() - started > 4, "the answer is too small for this test"
        assert len(json.loads(body)["data"]) == 10


@pytest.mark.slow
def test_what_the_grace_leaves_is_told_that_the_server_ends(start: Any) -> None:
    with start(tracebacks=1) as server:
        port = httpx.URL(server.url).port
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            head = f"POST /v1{GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            time.sleep(0.3)
            for _ in range(2):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            answer = read(slow)
        assert server.process.wait(10) == 0
        head, _, body = answer.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 503")
        assert "x-request-id: req_" in head
        assert json.loads(body)["error"]["code"] == "shutting_down"


@pytest.mark.slow
def test_a_connection_outlives_the_pause_that_clients_keep_it_for(start: Any) -> None:
    with start() as server, socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=20) as idle:
        for pause_sec in (0, 6):  # httpx and OpenAI's client give a connection up after 5 s
            time.sleep(pause_sec)
            idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"live\n"):
                answer += (piece := idle.recv(4096))
                assert piece, "it was closed"
            assert answer.startswith(b"HTTP/1.1 200")


def test_a_proxy_is_told_to_pass_events_on(start: Any) -> None:
    with start() as server:
        for stream, said in ((True, "no"), (False, None)):
            answer = httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": "x", "size": "8x8", "stream": stream})
            assert answer.status_code == 200
            assert answer.headers.get("x-accel-buffering") == said
