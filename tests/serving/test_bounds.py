"""Nothing a request waits for has no end, and nothing that is held for requests has no bound."""

import asyncio
import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gigagan.serving import gate as gate_module
from gigagan.serving.api_error import ApiError
from gigagan.serving.batcher import Batcher, Job
from gigagan.serving.gate import Gate
from gigagan.serving.limits import Limits
from gigagan.serving.metrics import Metrics
from gigagan.serving.supervisor import Worker, WorkerGone
from gigagan.serving.wire import Answer, Facts, Item, Upscale

GENERATIONS = "/images/generations"
SMALL = {"prompt": "a cat", "size": "64x64"}
CHECKER = """
import time
from pathlib import Path

class Checker:
    def check_prompt(self, prompt):
        return self.wait() if prompt == "wait" else ""

    def check_picture(self, image):
        return self.wait() if image.size == (32, 32) else ""

    def wait(self):
        while not Path(__file__).with_name("go").exists():
            time.sleep(0.02)
        return ""
"""


def ask(server: Any, **said: Any) -> tuple[int, str, float]:
    """Status, code of the error, seconds."""
    started = time.monotonic()
    answer = httpx.post(f"{server.url}{GENERATIONS}", json=SMALL | said, timeout=60)
    code = answer.json()["error"]["code"] if answer.status_code != 200 else ""
    return answer.status_code, code, time.monotonic() - started


@pytest.mark.slow
def test_a_checker_that_hangs_costs_its_requests_their_time_and_nothing_else(
    launch_limited: Any, tmp_path: Path
) -> None:
    (tmp_path / "patient.py").write_text(CHECKER)
    limits = {"queue_sec": 1.0, "total_sec": 4.0}
    with (
        launch_limited(tmp_path, safety="patient:Checker", **limits) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        hanging = pool.submit(ask, server, prompt="wait")
        time.sleep(0.3)
        assert ask(server)[0] == 200, "another thread checks"
        body = SMALL | {"size": "32x32", "stream": True, "partial_images": 1}
        with httpx.stream("POST", f"{server.url}{GENERATIONS}", json=body, timeout=60) as answer:
            events = [line for line in answer.iter_lines() if line]
        assert [line for line in events if line.startswith("event")] == [
            "event: image_generation.partial_image",
            "event: error",
        ]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "generation_timeout"
        status, code, seconds = hanging.result()
        assert (status, code) == (504, "generation_timeout")
        assert 3.9 < seconds < 5.5

        # Now both threads hang, and who asks is told so at once.
        deadline = time.monotonic() + 5
        while server.ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        status, code, seconds = ask(server)
        assert (status, code) == (503, "not_ready")
        assert seconds < 1
        (tmp_path / "go").touch()
        server.wait_ready(5)
        assert ask(server)[0] == 200

        # Nor does it hold up the end.
        (tmp_path / "go").unlink()
        hanging = pool.submit(ask, server, prompt="wait")
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert hanging.result()[0] == 504


class Quick:
    """A place to draw at that costs no time; one of Ray's would be another."""

    facts = Facts("abc", "float32", "cpu", "none", (4,), 6, 2, 0.7)

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()

    seconds = 0.0

    async def draw(self, items: Sequence[Item | Upscale]) -> list[Answer]:
        await self.free.wait()
        await asyncio.sleep(self.seconds)
        return [Answer([(4, bytes(48))]) for _ in items]

    def stop(self) -> None:
        pass

    async def gone(self) -> WorkerGone:
        await asyncio.Event().wait()
        raise AssertionError

    async def end(self) -> None:
        pass


@contextlib.asynccontextmanager
async def batching(queue: int, **limits: float) -> AsyncIterator[tuple[Batcher, Quick]]:
    place = Quick()

    async def start() -> Quick:
        return place

    batcher = Batcher(start, Limits(queue=queue, **limits), Metrics())
    task = asyncio.create_task(batcher.run())
    while not batcher.ready:
        await asyncio.sleep(0)
    yield batcher, place
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_drawn_and_not_yet_answered_has_a_bound() -> None:
    """As many as may wait for the model, and a batch; until their requests are over, which has an end."""

    async def submit(batcher: Batcher, count: int, seconds: float = 60) -> list[Job[Item]]:
        end = asyncio.get_running_loop().time() + seconds
        jobs = batcher.submit([Item("", seed, 0.7, (4,)) for seed in range(count)], end)
        await asyncio.gather(*(job.answer for job in jobs))
        return jobs

    async def run() -> None:
        async with batching(4) as (batcher, _):
            first = await submit(batcher, 4)
            for _ in range(3):  # 4 + 3 x 2 are the queue twice and a batch
                await submit(batcher, 2, 0.5)
            assert batcher.waiting == 0
            with pytest.raises(ApiError) as caught:
                await submit(batcher, 1)
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
            batcher.release(first)
            await submit(batcher, 4)
            with pytest.raises(ApiError):
                await submit(batcher, 1)
            await asyncio.sleep(0.6)
            await submit(batcher, 4)

    asyncio.run(run())


def pictures(count: int) -> list[Item]:
    return [Item("", seed, 0.7, (4,)) for seed in range(count)]


def test_what_could_not_begin_in_time_is_refused_at_once() -> None:
    async def run() -> None:
        async with batching(128, queue_sec=3.0) as (batcher, place):
            place.seconds = 0.1  # a batch, of two
            end = asyncio.get_running_loop().time() + 60
            batcher._batch_sec = 10.0  # as after a batch that hung for a while
            jobs = batcher.submit(pictures(4), end)  # an idle server tries all the same
            with pytest.raises(ApiError, match="to begin the last picture; ask for fewer or try again") as caught:
                batcher.submit(pictures(4), end)
            assert caught.value.status == 429
            await asyncio.gather(*(job.answer for job in jobs))
            batcher.release(jobs)
            batcher._batch_sec = 0.1
            jobs = batcher.submit(pictures(4), end)
            with pytest.raises(ApiError):
                batcher.submit(pictures(100), end)
            assert batcher.waiting == 4
            jobs += batcher.submit(pictures(8), end)
            assert len(await asyncio.gather(*(job.answer for job in jobs))) == 12
            batcher.release(jobs)
            place.seconds = 0.8  # a loop of 16 frames is eight batches
            for _ in range(3):
                jobs = batcher.submit([Item("", 0, 0.7, (4,), 16)], end)
                await jobs[0].answer
                batcher.release(jobs)
            assert batcher._batch_sec < 0.3

    asyncio.run(run())


def test_a_picture_waits_for_an_upscale_longer_than_for_pictures() -> None:
    async def run() -> None:
        async with batching(4, queue_sec=0.3) as (batcher, place):
            end = asyncio.get_running_loop().time() + 60
            for first, outcome in (
                (Item("", 0, 0.7, (4,)), "queue_timeout"),
                (Upscale(b"", "", 0, 2, 0, True, 1.0), ""),
            ):
                place.free.clear()
                jobs = batcher.submit([first], end)
                await asyncio.sleep(0.02)
                waiting = batcher.submit([Item("", 1, 0.7, (4,))], end)
                await asyncio.sleep(0.7)
                place.free.set()
                try:
                    await waiting[0].answer
                    code = ""
                except ApiError as error:
                    code = error.code
                assert code == outcome
                batcher.release([*jobs, *waiting])

    asyncio.run(run())


def test_answers_that_nobody_reads_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MAX_UNREAD_BYTES", 1000)

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(600)})

    async def run() -> None:
        gate = Gate(answers, hosts=(), keys=("k",), routes=(), limits=Limits(per_key=3), metrics=Metrics())
        was_read = asyncio.Event()

        async def ask() -> int:
            sent = []

            async def send(message: Any) -> None:
                if sent and sent[-1].get("body"):
                    await was_read.wait()  # as uvicorn does, before it takes more
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b""}
            await gate(scope | {"headers": [(b"authorization", b"Bearer k")]}, None, send)
            assert b"".join(message.get("body", b"") for message in sent)
            assert not sent[-1].get("more_body")
            return int(sent[0]["status"])

        reading = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert (gate.active, gate.unread) == (2, 1200)
        refused = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        assert gate.unread > 1200, "the refusal too is unread"
        was_read.set()
        assert await refused == 429
        assert await asyncio.gather(*reading) == [200, 200]
        assert await ask() == 200

    asyncio.run(run())


def test_nothing_of_a_job_whose_request_is_over_is_held() -> None:
    async def run() -> None:
        async with batching(4) as (batcher, place):
            place.free.clear()
            end = asyncio.get_running_loop().time() + 60
            drawn = batcher.submit([Item("", 0, 0.7, (4,))], end)
            await asyncio.sleep(0.01)
            assert batcher.waiting == 0
            jobs = batcher.submit([Upscale(b"", "", 0, 2, 0, True, 1.0) for _ in range(4)], end)
            assert batcher.waiting == 4
            held = [weakref.ref(job) for job in [*drawn, *jobs]]
            batcher.release(jobs)
            await asyncio.sleep(0.01)
            del jobs
            assert [job() for job in held[1:]] == [None] * 4
            assert batcher.waiting == 0
            place.free.set()
            await drawn[0].answer
            batcher.release(drawn)
            await asyncio.sleep(0.01)
            del drawn
            assert held[0]() is None

    asyncio.run(run())


def rss(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
def test_who_leaves_takes_an_uploaded_picture_out_of_memory(launch_limited: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    size, count = 15 * 2**20, 30
    form = httpx.Request("POST", "http://x", files={"image": buffer.getvalue() + bytes(size)})
    body = form.read()
    head = f"POST /v1/images/upscale HTTP/1.1\r\nHost: x\r\nContent-Type: {form.headers['content-type']}\r\n"
    with launch_limited(tmp_path, queue=64, grace_sec=1.0, upscale_pixels=2**20) as server:
        port = httpx.URL(server.url).port
        worker = server.worker()
        os.kill(worker, signal.SIGSTOP)  # so that all of them wait

        def leave() -> None:
            before = server.metric("gigagan_abandoned_total")
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                deadline = time.monotonic() + 10
                while server.metric("gigagan_requests_active") < 2:  # it and the one that asks this
                    assert time.monotonic() < deadline
                time.sleep(0.1)
            while server.metric("gigagan_abandoned_total") == before:
                assert time.monotonic() < deadline + 10

        for _ in range(3):
            leave()
        before = rss(server.process.pid)
        for _ in range(count):
            leave()
        assert rss(server.process.pid) - before < count * size / 4
        assert server.metric("gigagan_queue_pictures") == 0
        os.kill(worker, signal.SIGCONT)


@pytest.mark.slow
def test_a_worker_that_cant_be_started_now_is_started_later(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path) as server:
        pid = server.process.pid
        most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, most[1]))  # not one file more than are open
        os.kill(server.worker(), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "no process can be started: [Errno 24]" not in server.log.read_text():
            assert time.monotonic() < deadline
            assert server.process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        assert server.process.poll() is None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, most)
        server.wait_ready(60)
        assert ask(server)[0] == 200


def test_a_worker_that_is_never_ready_is_ended() -> None:
    """No model is loaded in that time: Python itself takes longer to start."""
    with pytest.raises(WorkerGone, match=r"wasn't loaded within 0\.01 s"):
        asyncio.run(Worker.start({"path": "emoji"}, 0.01))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
        assert not any(b"gigagan.serving.worker" in command for command in commands)
