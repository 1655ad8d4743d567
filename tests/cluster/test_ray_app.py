"""Two replicas behind a socket: the plain pictures, errors and limits, and an answer though a replica dies."""

import base64
import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from gigagan.metadata import png_bytes
from gigagan.pipeline import DEFAULT_PSI, Pipeline
from gigagan.serving.encode import PNG_LEVEL
from tests.serving.clients import Clients

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROMPT = "a 3D render of a red apple"
SMALL = {"prompt": PROMPT, "size": "64x64", "output_format": "jpeg"}


def ask(service: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/images/generations", json=body, timeout=60)


def test_a_picture_is_the_pipelines_to_the_byte(service: Any) -> None:
    answer = ask(service, prompt=PROMPT, seeds=[7, 8])
    assert answer.status_code == 200, answer.text
    pipe = Pipeline.from_pretrained()
    for found, image in zip(answer.json()["data"], pipe(PROMPT, seeds=[7, 8]).images, strict=True):
        wanted = png_bytes(image, pipe.info(PROMPT, found["seed"], DEFAULT_PSI, image.width), level=PNG_LEVEL)
        assert base64.b64decode(found["b64_json"]) == wanted
    small = ask(service, prompt=PROMPT, seed=7, size="64x64").json()["data"][0]
    wanted = png_bytes(pipe(PROMPT, seeds=7).level(64)[0], pipe.info(PROMPT, 7, DEFAULT_PSI, 64), level=PNG_LEVEL)
    assert base64.b64decode(small["b64_json"]) == wanted


def test_a_stream_ends_with_the_picture(service: Any) -> None:
    body = SMALL | {"stream": True, "partial_images": 2}
    with httpx.stream("POST", f"{service.url}/images/generations", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["size"] for event in events] == ["16x16", "32x32", "64x64"]
    assert events[-1]["type"] == "image_generation.completed"


def test_errors_are_those_of_the_plain_server(service: Any) -> None:
    answer = ask(service, prompt=PROMPT, sede=1)
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "unknown parameter sede; leave it out",
        "type": "invalid_request_error",
        "param": "sede",
        "code": "unknown_parameter",
    }
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert httpx.get(f"{service.root}/nothing").json()["error"]["code"] == "not_found"
    wrong = httpx.get(f"{service.url}/models", headers={"host": "example.com"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (421, "wrong_host")
    page = httpx.post(f"{service.url}/images/generations", json=SMALL, headers={"origin": "http://example.com"})
    assert page.json()["error"]["code"] == "foreign_origin"


class Load(Clients):
    """What came to clients that ask again and again."""

    def __init__(self, service: Any, number: int) -> None:
        super().__init__(service.url, number)
        self.answers: list[httpx.Response] = []

    def ask(self, client: httpx.Client) -> None:
        answer = client.post(f"{self.url}/images/generations", json=SMALL)
        self.answers.append(answer)
        if answer.status_code == 429:
            time.sleep(0.2)

    def count(self, status: int) -> int:
        return sum(answer.status_code == status for answer in self.answers)


def test_what_is_too_much_is_told_so(service: Any) -> None:
    with Load(service, 40) as clients:
        time.sleep(2)
        waiting = httpx.get(f"{service.root}/metrics").text.partition("\ngigagan_queue_pictures ")[2]
    assert float(waiting.split("\n")[0]) <= 8
    assert {answer.status_code for answer in clients.answers} == {200, 429}
    refused = next(answer for answer in clients.answers if answer.status_code == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after-ms"]) >= 50


def test_who_leaves_costs_nothing(service: Any) -> None:
    before = drawn(service)
    stopped = service.models()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        threads = [threading.Thread(target=leave, args=(service,)) for _ in range(8)]
        for number, thread in enumerate(threads):
            thread.start()
            time.sleep(0.3 if number < len(stopped) else 0)  # one for each replica; the others wait
        for thread in threads:
            thread.join()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert ask(service, **SMALL).status_code == 200
    assert drawn(service) - before <= len(stopped) + 1


def leave(service: Any) -> None:
    with contextlib.suppress(httpx.ReadTimeout):
        answer = httpx.post(f"{service.url}/images/generations", json=SMALL, timeout=1.5)
        raise AssertionError(answer.text)


def drawn(service: Any) -> float:
    text = httpx.get(f"{service.root}/metrics").text
    return float(text.partition("\ngigagan_batch_pictures_sum ")[2].split("\n")[0])


def test_a_replica_that_dies_is_replaced_and_the_other_answers(service: Any) -> None:
    first = service.models()
    assert len(first) == 2
    with Load(service, 4) as clients:
        time.sleep(0.5)
        os.kill(first[0], signal.SIGKILL)
        time.sleep(1)
        delivered = clients.count(200)
        assert httpx.get(f"{service.root}/health/live").status_code == 200
        deadline = time.monotonic() + 60
        while clients.count(200) < delivered + 5 or len(set(service.models()) - set(first)) < 1:
            assert time.monotonic() < deadline, service.log.read_text()[-3000:]
            time.sleep(0.1)
    found = Counter(answer.status_code for answer in clients.answers)
    assert set(found) <= {200, 503}, found
    assert found[503] <= 8
    codes = {answer.json()["error"]["code"] for answer in clients.answers if answer.status_code == 503}
    assert codes <= {"worker_died"}
    assert Path(f"/proc/{first[1]}").exists()
