"""The server through sockets, as OpenAI's own client and as raw HTTP see it."""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from gigagan.metadata import SOURCE_TYPE, read_info
from gigagan.pipeline import Pipeline
from tests.reliability.sets import sizes

APPLE = "a 3D render of a red apple"
GENERATIONS = "/images/generations"


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained()


def decoded(b64: str | None) -> Image.Image:
    assert b64 is not None
    image = Image.open(io.BytesIO(base64.b64decode(b64, validate=True)))
    image.load()
    return image


def pixels(b64: str | None) -> np.ndarray:
    return np.asarray(decoded(b64))


def metric(server: Any, name: str) -> float:
    """The sum over labels."""
    lines = httpx.get(f"{server.root}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


def test_the_official_client_gets_the_pipelines_pictures(client: openai.OpenAI, pipe: Pipeline) -> None:
    answer = client.images.generate(prompt=APPLE, n=3, size="64x64", model="emoji", extra_body={"seeds": [7, 0, 9]})
    known = answer.model_dump() | {"size": "1024x1024"}  # 2.0.0 knows OpenAI's own sizes alone
    type(answer).model_validate(known, strict=True)
    assert answer.data is not None
    for one, image in zip(answer.data, pipe(APPLE, seeds=[7, 0, 9]).level(64), strict=True):
        assert np.array_equal(pixels(one.b64_json), np.asarray(image))
    assert [one.seed for one in answer.data] == [7, 0, 9]  # type: ignore[attr-defined]
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens == pipe.text_encoder.count_tokens(APPLE)
    assert abs(answer.created - time.time()) < 60


def test_the_async_client_and_the_raw_response(server: Any) -> None:
    async def ask() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            answer = await client.images.generate(prompt=APPLE, extra_body={"seed": 3})
            raw = await client.images.with_raw_response.generate(prompt=APPLE, quality="high", user="me")
            return answer, raw

    answer, raw = asyncio.run(ask())
    assert re.fullmatch(r"req_\w{24}", answer._request_id)
    assert raw.headers["x-ignored-params"] == "quality, user"
    assert raw.headers["content-type"] == "application/json"
    parsed = raw.parse()
    assert parsed.safety_identifier == "me"
    assert parsed.data[0].seed < 2**32


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_says_that_a_machine_drew_it(client: openai.OpenAI, kind: Any, tmp_path: Path) -> None:
    body = {"seed": 5, "truncation_psi": 0.5, "mix": {"prompt": "a flat icon of <a> & b", "layer": 2}}
    answer = client.images.generate(prompt=APPLE, output_format=kind, extra_body=body)
    assert answer.data
    image = decoded(answer.data[0].b64_json)
    assert (image.format, image.size) == (kind.upper(), (512, 512))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(base64.b64decode(answer.data[0].b64_json or ""))
    assert SOURCE_TYPE.encode() in path.read_bytes()
    said = read_info(path)
    assert (said["prompt"], said["seed"], said["psi"]) == (APPLE, "5", "0.5")
    assert said["digitalSourceType"] == "trainedAlgorithmicMedia"
    assert json.loads(said["edit"]) == {"edit": "mix", "fine": "a flat icon of <a> & b", "fine_seed": 5, "layer": 2}


def test_compression_is_quality(client: openai.OpenAI) -> None:
    for kind in ("jpeg", "webp"):
        sizes = []
        for quality in (0, 50, 100):
            answer = client.images.generate(
                prompt=APPLE, output_format=kind, output_compression=quality, extra_body={"seed": 1}
            )
            assert answer.data
            sizes.append(len(answer.data[0].b64_json or ""))
        assert sizes == sorted(set(sizes)), kind


def test_a_gif_is_a_loop(client: openai.OpenAI, pipe: Pipeline) -> None:
    answer = client.images.generate(
        prompt=APPLE, output_format="gif", extra_body={"seed": 2, "frame_count": 6, "frame_duration_ms": 124}
    )
    assert answer.data
    image = decoded(answer.data[0].b64_json)
    assert (image.n_frames, image.info["loop"], image.info["duration"]) == (6, 0, 120)  # type: ignore[attr-defined]
    for frame, seed in ((0, 2), (2, 3), (4, 4)):
        image.seek(frame)
        ours = np.asarray(pipe(APPLE, seeds=[seed]).images[0], np.int32)
        assert np.abs(np.asarray(image.convert("RGB"), np.int32) - ours).mean() < 8  # 256 colors a frame


def test_a_stream_is_the_pyramid_and_ends_in_completed(client: openai.OpenAI, pipe: Pipeline) -> None:
    events = list(
        client.images.generate(
            prompt=APPLE,
            stream=True,
            partial_images=2,
            n=2,
            extra_body={"seeds": [4, 5], "safety_identifier": "me", "svg": None},  # 2.0.0 has no such arguments
        )
    )
    assert [event.type.partition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"] * 2
    output = pipe(APPLE, seeds=[4, 5])
    for n, event in enumerate(events):
        type(event).model_validate(event.model_dump() | {"size": "1024x1024"}, strict=True)
        side = (128, 256, 512)[n % 3]
        assert event.size == f"{side}x{side}"
        assert np.array_equal(pixels(event.b64_json), np.asarray(output.level(side)[n // 3]))
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert events[2].usage.input_tokens > 0  # type: ignore[union-attr]
    assert [getattr(event, "safety_identifier", None) for event in events] == [None, None, "me"] * 2


ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str | None]] = [
    ({"prompt": ""}, openai.BadRequestError, "invalid_value", "prompt"),
    ({"size": "1024x1024"}, openai.BadRequestError, "invalid_size", "size"),
    ({"n": -5}, openai.BadRequestError, "invalid_value", "n"),
    ({"model": "gpt-image-1"}, openai.NotFoundError, "model_not_found", "model"),
    ({"response_format": "url"}, openai.BadRequestError, "unsupported_value", "response_format"),
    ({"extra_body": {"sede": 1}}, openai.BadRequestError, "unknown_parameter", "sede"),
    ({"extra_body": {"seed": 2**70}}, openai.BadRequestError, "invalid_value", "seed"),
    ({"stream": True, "n": 11}, openai.BadRequestError, "invalid_value", "n"),
]


@pytest.mark.parametrize(("said", "kind", "code", "param"), ERRORS, ids=lambda value: str(value)[:40])
def test_errors_are_typed(
    client: openai.OpenAI, said: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        client.images.generate(**{"prompt": "a cat", **said})
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.message
    assert error.request_id


def test_what_isnt_served_says_so(client: openai.OpenAI, server: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="only generates"):
        client.images.edit(image=b"x", prompt="y")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")
    assert client.models.retrieve("emoji").id == client.models.list().data[0].id == "emoji"
    for method, path, status in [
        ("GET", "/v1/images/generations", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/images/upscale", 405),
        ("GET", "/v1/models/", 404),
    ]:
        answer = httpx.request(method, f"{server.root}{path}")
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_page_of_another_name_and_the_wrong_type_are_refused(server: Any) -> None:
    assert httpx.get(f"{server.url}/models", headers={"host": "evil.example"}).status_code == 421
    form = {"content-type": "text/plain"}
    assert httpx.post(f"{server.url}{GENERATIONS}", content='{"prompt": "x"}', headers=form).status_code == 415
    assert httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": "x" * 2**20}).status_code == 413
    # The same without saying how much will come.
    chunks = (b"x" * 2**16 for _ in range(32))
    kind = {"content-type": "application/json"}
    assert httpx.post(f"{server.url}{GENERATIONS}", content=chunks, headers=kind).status_code == 413


def test_a_picture_is_the_same_in_any_company(client: openai.OpenAI, pipe: Pipeline) -> None:
    asked = [
        (f"a {color} {thing}", seed) for seed, color in enumerate(("red", "blue")) for thing in ("cat", "car", "hat")
    ]
    asked *= 4

    def ask(prompt: str, seed: int) -> bytes:
        answer = client.images.generate(prompt=prompt, extra_body={"seed": seed})
        assert answer.data
        return pixels(answer.data[0].b64_json).tobytes()

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda one: ask(*one), asked))
    for (prompt, seed), picture in list(zip(asked, found, strict=True))[:6]:
        assert picture == np.asarray(pipe(prompt, seeds=[seed]).images[0]).tobytes()
    assert found == found[:6] * 4


@sizes(1, 20)
def test_g6_a_request_whose_client_left_is_not_drawn(server: Any, count: int) -> None:
    """Six leave one after the other, of which five wait; then five who are alone, so that theirs is being drawn."""
    body = json.dumps({"prompt": "a cat", "n": 10}).encode()
    head = f"POST /v1{GENERATIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    begun = metric(server, "gigagan_abandoned_total"), metric(server, "gigagan_batch_pictures_sum")
    left = 0

    def leave(requests: int) -> None:
        nonlocal left
        for _ in range(requests):
            with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                time.sleep(0.02)
        left += requests
        deadline = time.monotonic() + 20
        while metric(server, "gigagan_abandoned_total") < begun[0] + left:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    for _ in range(count):
        leave(6)
        for _ in range(5):
            leave(1)
    drawn = metric(server, "gigagan_batch_pictures_sum") - begun[1]
    time.sleep(1)
    assert metric(server, "gigagan_queue_pictures") == 0
    assert metric(server, "gigagan_batch_pictures_sum") - begun[1] - drawn <= 4, "more than the batch in hand"
    assert drawn < 10 * left / 2


def test_a_full_queue_refuses_at_once_and_loses_nothing(server: Any) -> None:
    def ask(seed: int) -> tuple[int, float, dict[str, str]]:
        started = time.monotonic()
        answer = httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": "a cat", "n": 10, "seed": seed}, timeout=60)
        return answer.status_code, time.monotonic() - started, dict(answer.headers)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    by_status = {status: [one for one in answers if one[0] == status] for status in (200, 429, 503)}
    assert sum(map(len, by_status.values())) == 16
    assert len(by_status[200]) >= 1
    assert by_status[429], "160 pictures fit into a queue of 64"
    for _, _, headers in by_status[429]:
        assert int(headers["retry-after-ms"]) > 0
        assert headers["x-should-retry"] == "true"


def test_health_and_metrics(server: Any) -> None:
    assert httpx.get(f"{server.root}/health/live").text == "live\n"
    assert httpx.get(f"{server.root}/health/ready").text == "ready\n"
    before = metric(server, "gigagan_pictures_total"), metric(server, "gigagan_requests_total")
    httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": "a cat", "n": 2}, timeout=60)
    httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": ""})
    assert metric(server, "gigagan_pictures_total") == before[0] + 2
    assert metric(server, "gigagan_requests_total") >= before[1] + 2
    assert metric(server, "gigagan_ready") == 1
    assert "/v1/images/generations" in httpx.get(f"{server.root}/openapi.json").json()["paths"]


def test_prompts_stay_out_of_the_log(server: Any) -> None:
    secret = "a picture of a quokka"
    httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": secret}, timeout=60)
    text = server.log.read_text()
    assert "200" in text
    assert "quokka" not in text


CHECKER = """
class Checker:
    def check_prompt(self, prompt):
        return "no cats here" if "cat" in prompt else ""

    def check_picture(self, image):
        if image.size == (8, 8):
            raise RuntimeError("a mistake of the operator's")
        return "too square" if image.size == (32, 32) else ""
"""
KEYS = ("first-key-of-sixteen-or-more", "second-key-of-sixteen-or-more")


@pytest.mark.slow
def test_keys_guard_every_route_and_a_checker_its_pictures(launch: Any, tmp_path: Path) -> None:
    (tmp_path / "house_rules.py").write_text(CHECKER)
    command = ["-m", "gigagan", "serve", "--port", "0", "--per-key", "2", "--log-prompts"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"GIGAGAN_API_KEYS": " ".join(KEYS), "PYTHONPATH": path}
    checked = ("--safety", "house_rules:Checker")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(launch(tmp_path, *command, *checked, environment=environment, tracebacks=2))
        with_key = {"authorization": f"Bearer {KEYS[1]}"}
        paths = [
            *httpx.get(f"{server.root}/openapi.json", headers=with_key).json()["paths"],
            "/openapi.json",
            "/nothing",
        ]
        assert "/metrics" in paths
        for route in paths:
            for headers in ({}, {"authorization": f"Bearer {KEYS[0][:-1]}"}, {"authorization": f"Basic {KEYS[0]}"}):
                for method in ("GET", "POST", "OPTIONS"):
                    answer = httpx.request(method, f"{server.root}{route}", headers=headers)
                    if route != "/health/live":
                        assert answer.status_code == 401, route
                        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.root}/health/live").status_code == 200
        for key in (*KEYS, "wrong"):
            with openai.OpenAI(base_url=server.url, api_key=key, max_retries=0) as asking:
                if key in KEYS:
                    assert asking.images.generate(prompt="a dog").data
                else:
                    with pytest.raises(openai.AuthenticationError):
                        asking.images.generate(prompt="a dog")
        client = stack.enter_context(openai.OpenAI(base_url=server.url, api_key=KEYS[0], max_retries=0))
        for said in ({"prompt": "a cat"}, {"prompt": "a dog", "size": "32x32"}, {"prompt": "a cat", "stream": True}):
            with pytest.raises(openai.BadRequestError) as caught:
                client.images.generate(**said)  # type: ignore[call-overload]
            assert caught.value.code == "content_policy_violation"
        # A stream that is refused once it began ends in an error, not in silence.
        with pytest.raises(openai.APIError, match="too square"):
            list(client.images.generate(prompt="a dog", size="32x32", stream=True, partial_images=1))

        for side, prompt, why in ((4, "a dog", "too square"), (8, "a cat", "no cats here")):
            buffer = io.BytesIO()
            Image.new("RGB", (side, side)).save(buffer, "PNG")
            answer = httpx.post(
                f"{server.url}/images/upscale",
                files={"image": buffer.getvalue()},
                data={"prompt": prompt},
                headers=with_key,
                timeout=60,
            )
            assert answer.json()["error"]["code"] == "content_policy_violation"
            assert why in answer.text
        with pytest.raises(openai.APIError, match="something is wrong"):
            list(client.images.generate(prompt="a dog", size="8x8", stream=True, partial_images=1))
        with pytest.raises(openai.InternalServerError, match="something is wrong") as told:
            client.images.generate(prompt="a dog", size="8x8")
        assert told.value.code == "internal_error"
        assert "operator" not in told.value.response.text

        codes: list[int] = []

        def ask() -> None:
            body = {"prompt": "a dog", "n": 10}
            answer = httpx.post(f"{server.url}{GENERATIONS}", json=body, headers=with_key, timeout=60)
            codes.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes.count(429) >= 1
        assert codes.count(200) >= 2
        log = server.log.read_text()
        assert "a dog" in log
        assert not any(key in log for key in KEYS)
