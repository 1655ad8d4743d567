"""What happens when things go wrong: workers die or hang, clients are too many, the server is told to end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gigagan import cli
from gigagan.serving.connection import HEADER_SEC
from tests.serving.clients import Clients

GENERATIONS = "/images/generations"
BODY = {"prompt": "a cat", "output_format": "jpeg"}


class Load(Clients):
    """What each answer to them was, or why there was none."""

    def __init__(self, url: str, clients: int, *, pause_sec: float = 0.05) -> None:
        super().__init__(url, clients)
        self.answers: list[tuple[int, float, str]] = []
        """Status (0 = none came, as of a connection that was closed; -1 = a cut one), seconds, code of the error."""
        self.latest = 0.0
        self._pause_sec = pause_sec

    def ask(self, client: httpx.Client) -> None:
        started = time.monotonic()
        status, code = 0, ""
        try:
            with client.stream("POST", f"{self.url}{GENERATIONS}", json=BODY) as answer:
                status = -1
                found = json.loads(answer.read())
                status = answer.status_code
            code = found["error"]["code"] if status != 200 else ""
            if status == 200:
                assert found["data"][0]["b64_json"]
        except httpx.TransportError:
            time.sleep(0.05)
        self.latest = time.monotonic()
        self.answers.append((status, self.latest - started, code))
        if status == 429:
            time.sleep(self._pause_sec)

    def count(self, status: int) -> int:
        return sum(one[0] == status for one in self.answers)


def kill_workers(launch_limited: Any, folder: Path, times: int) -> tuple[float, list[float]]:
    """Seconds of the first start under load, and from each death to the next worker that is ready."""
    found = []
    with launch_limited(folder) as server, Load(server.url, 6) as load:
        first = server.wait_ready(60)
        for _ in range(times):
            time.sleep(0.3)
            pid = server.worker()
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
            assert httpx.get(f"{server.root}/health/live").status_code == 200
            server.wait_ready(60)
            found.append(time.monotonic() - killed)
            assert server.worker() != pid
            delivered = load.count(200)
            deadline = time.monotonic() + 20
            while load.count(200) == delivered:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert {status for status, _, _ in load.answers} <= {200, 503}
    codes = {code for status, _, code in load.answers if status == 503}
    assert codes <= {"worker_died", "not_ready", "queue_timeout"}
    assert "worker_died" in codes
    return first, found


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_nobody_hangs(launch_limited: Any, tmp_path: Path) -> None:
    kill_workers(launch_limited, tmp_path, 2)


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_thirty_dead_workers(launch_limited: Any, tmp_path: Path) -> None:
    first, found = kill_workers(launch_limited, tmp_path, 30)
    print(f"first start {first:.1f} s, others {min(found):.1f} to {max(found):.1f} s")
    assert max(found) <= 10 + first


@pytest.mark.slow
def test_a_stuck_worker_is_replaced_and_deadlines_hold(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path, queue_sec=1.0, total_sec=3.0) as server:
        pid = server.worker()
        os.kill(pid, signal.SIGSTOP)

        def ask(wait: float) -> tuple[int, str, float]:
            time.sleep(wait)
            started = time.monotonic()
            answer = httpx.post(f"{server.url}{GENERATIONS}", json=BODY, timeout=30)
            return answer.status_code, answer.json()["error"]["code"], time.monotonic() - started

        with ThreadPoolExecutor(2) as pool:
            running, waiting = pool.map(ask, (0, 0.3))
        assert running[:2] == (504, "generation_timeout")
        assert 1.5 < running[2] < 3.5
        assert waiting[:2] == (503, "queue_timeout")
        assert 0.9 < waiting[2] < 1.5
        assert server.wait_ready(60)
        assert server.worker() != pid
        assert httpx.post(f"{server.url}{GENERATIONS}", json=BODY, timeout=30).status_code == 200


def end_under_load(launch_limited: Any, folder: Path) -> None:
    with launch_limited(folder) as server, Load(server.url, 8) as load:
        while load.count(200) < 8:
            time.sleep(0.05)
        with httpx.Client() as probe:
            assert probe.get(f"{server.root}/health/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            try:
                while probe.get(f"{server.root}/health/ready").status_code != 503:
                    assert time.monotonic() - sent < 1
            except httpx.TransportError:
                assert time.monotonic() - sent < 30  # it has ended already
        assert server.process.wait(35) == 0
    assert {status for status, _, _ in load.answers} <= {200, 503, 0}
    assert {code for status, _, code in load.answers if status == 503} <= {"shutting_down"}
    # Of what the server had received, nothing went without an answer.
    assert " 499 " not in server.log.read_text()


@pytest.mark.slow
def test_the_signal_to_end_cuts_no_answer(launch_limited: Any, tmp_path: Path) -> None:
    end_under_load(launch_limited, tmp_path)


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_fifty_signals_to_end(launch_limited: Any, tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / str(n)).mkdir()
        end_under_load(launch_limited, tmp_path / str(n))


@pytest.mark.slow
def test_grace_ends_and_a_second_signal_ends_at_once(launch_limited: Any, tmp_path: Path) -> None:
    for grace_sec, second in ((1.0, False), (30.0, True)):
        folder = tmp_path / str(second)
        folder.mkdir()
        with launch_limited(folder, grace_sec=grace_sec) as server, ThreadPoolExecutor(1) as pool:
            worker = server.worker()
            os.kill(worker, signal.SIGSTOP)  # what was accepted can't be answered

            def ask(url: str = server.url) -> int:
                try:
                    return httpx.post(f"{url}{GENERATIONS}", json=BODY, timeout=30).status_code
                except httpx.TransportError:
                    return 0

            answer = pool.submit(ask)
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            if second:
                time.sleep(0.5)
                assert server.process.poll() is None
                server.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert server.process.wait(10) == 0
            assert time.monotonic() - started < 5
            assert answer.result() == 503
            deadline = time.monotonic() + 10
            while Path(f"/proc/{worker}").exists():
                assert time.monotonic() < deadline, "an orphan"
                time.sleep(0.05)


def overload(launch_limited: Any, folder: Path, clients: int, seconds: float, share: float) -> list[float]:
    """As many requests as four such servers could serve; at least `share` of what it serves in peace is served.

    Seconds until each 429, as a client sees them that is none of the load.
    """
    queue = clients // 4
    with launch_limited(folder, queue=queue) as server:
        with Load(server.url, 8) as calm:
            time.sleep(seconds)
        peak = calm.count(200) / seconds
        with Load(server.url, clients, pause_sec=clients / (4 * peak)) as load:
            command = [sys.executable, "-m", "tests.serving.refusals", f"{server.url}{GENERATIONS}", str(seconds)]
            started = time.monotonic()
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 90)
            waiting = httpx.get(f"{server.root}/metrics").text.partition("\ngigagan_queue_pictures ")[2]
            assert float(waiting.split("\n")[0]) <= queue
            served = load.count(200) / (time.monotonic() - started)
    refused = sorted(json.loads(told.stdout))
    p50, p99 = (refused[len(refused) * percent // 100] for percent in (50, 99))
    print(f"{served:.1f} of {peak:.1f} pictures/s; {load.count(429)} x 429, in {p50:.3f} s, p99 {p99:.3f} s")
    assert {status for status, _, _ in load.answers} == {200, 429}
    assert served >= share * peak
    return refused


@pytest.mark.slow
def test_too_many_clients_are_told_so_and_the_others_served(launch_limited: Any, tmp_path: Path) -> None:
    overload(launch_limited, tmp_path, 40, 3, 0.2)  # whatever else runs on these cores


@pytest.mark.matrix
def test_256_clients_for_a_minute(launch_limited: Any, tmp_path: Path) -> None:
    refused = overload(launch_limited, tmp_path, 256, 60, 0.9)
    assert len(refused) >= 100
    assert refused[len(refused) * 99 // 100] <= 0.1


@pytest.mark.slow
def test_a_head_that_never_ends_is_closed(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path, body_sec=1.0) as server:
        port = httpx.URL(server.url).port
        headers = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        body = f"POST /v1{GENERATIONS} HTTP/1.1\r\n{headers}\r\n{{"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(body.encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        with socket.create_connection(("127.0.0.1", port), timeout=40) as dripping:
            started = time.monotonic()
            try:
                while time.monotonic() - started < 30:
                    dripping.sendall(b"X")
                    time.sleep(0.2)
            except ConnectionError:
                pass
            assert HEADER_SEC - 1 < time.monotonic() - started < HEADER_SEC + 5


@pytest.mark.slow
def test_no_orphan_of_a_server_that_was_killed(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path) as server:
        worker = server.worker()
        server.process.kill()
        server.process.wait(10)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in; set GIGAGAN_API_KEYS"),
        (["--host", "0.0.0.0", "--key", "short"], "a key has 5 characters; expected at least 16"),
        (["--safety", "no_such_module:X"], "--safety no_such_module:X: No module named"),
        (["--safety", "./checker.py:Checker"], "expected MODULE:NAME of something that can be imported"),
        (["--safety", "json:loads"], "--safety json:loads: has no check_prompt"),
        (["--queue", "0"], "Invalid value for '--queue'"),
    ],
)
def test_mistakes_of_the_operator_are_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIGAGAN_API_KEYS", raising=False)
    assert cli.run(["serve", *args]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_port_in_use_and_a_model_that_isnt_there_are_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for args, said in (
            (["--port", port], "give another --host or --port"),
            (["--port", "0", "--model", "nope"], "nope"),
        ):
            command = [sys.executable, "-m", "gigagan", "serve", "--port", "0", *args]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
            assert done.returncode == 2, done.stderr
            assert said in done.stderr
            assert done.stderr.startswith("gigagan: ")
            assert done.stderr.count("\n") == 1


def test_the_server_itself_never_imports_torch() -> None:
    code = "import sys, json, gigagan.serving.server; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_without_the_extra_it_is_one_line() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from gigagan.cli import main; main(['serve'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gigagan: fastapi isn't installed; run: pip install 'open-gigagan[serve]'\n"
