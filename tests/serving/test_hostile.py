"""Requests that mean harm or are no requests: an answer with an envelope, nothing lost for the others."""

import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

GENERATIONS = "/images/generations"


def mutated(rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """A request that can't be served: bad bytes, bad JSON, or a good body with one bad field."""
    kind = {"content-type": "application/json"}
    good: dict[str, Any] = {"prompt": "a cat", "n": 1, "size": "64x64", "seed": 1}
    values: list[Any] = [[], {}, "x" * 200, -1, 10**30, 0.5, [[[]]], {"a": {"b": []}}, "\x00", True]
    match rng.randrange(7):
        case 0:
            return rng.randbytes(rng.randrange(200)), kind
        case 1:
            text = json.dumps(good).encode()
            return text[: rng.randrange(1, len(text))], kind
        case 2:
            return json.dumps({**good, f"x{rng.randrange(99)}": rng.choice(values)}).encode(), kind
        case 3:
            field = rng.choice(["n", "size", "output_format", "truncation_psi", "mix", "seeds", "model"])
            bad = [value for value in values if not (field == "truncation_psi" and value == 0.5)]
            return json.dumps({**good, field: rng.choice(bad)}).encode(), kind
        case 4:
            return b'{"prompt":' + b"[" * rng.randrange(1, 5000), kind
        case 5:
            return json.dumps(good).replace(
                '"n": 1', f'"n": {rng.choice(["NaN", "1e400", "Infinity", "-0.0"])}'
            ).encode(), kind
        case _:
            return json.dumps(good).encode(), {
                "content-type": rng.choice(["", "text/html", "multipart/form-data", "json"])
            }


def malformed(server: Any, count: int, seed: int) -> None:
    rng = random.Random(seed)
    with httpx.Client() as client:
        for _ in range(count):
            content, headers = mutated(rng)
            answer = client.post(f"{server.url}{GENERATIONS}", content=content, headers=headers, timeout=30)
            assert 400 <= answer.status_code < 500, (answer.status_code, content[:200])
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert "Traceback" not in answer.text
            assert "/site-packages" not in answer.text
    assert httpx.post(f"{server.url}{GENERATIONS}", json={"prompt": "a cat"}, timeout=60).status_code == 200


def test_malformed_requests(server: Any) -> None:
    malformed(server, 300, 0)


@pytest.mark.matrix
def test_ten_thousand_malformed_requests(server: Any) -> None:
    malformed(server, 10_000, 1)


@pytest.mark.slow
def test_f4_hostile_model_names(server: Any) -> None:
    """Row F4, the server's part: a name is compared, and never becomes a path or an address."""
    draw = random.Random(4)
    parts = [
        "..",
        ".",
        "~",
        "emoji",
        "etc",
        "passwd",
        "%2e%2e",
        "a b",
        "\0",
        "\n",
        "é",
        "http:",
        "hf:",
        "",
        "@",
        "a" * 99,
    ]
    names = ["/".join(draw.choices(parts, k=draw.randint(2, 6))) for _ in range(500)]
    worker = server.worker()
    opened = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    with httpx.Client(timeout=60) as client:
        for name in names:
            answer = client.post(f"{server.url}{GENERATIONS}", json={"prompt": "a cat", "model": name})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), name
    assert server.worker() == worker
    assert len(list(Path(f"/proc/{worker}/fd").iterdir())) == opened
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 64


def test_a_foreign_web_page_is_refused(server: Any) -> None:
    own = server.root
    ask = {"prompt": "a cat", "size": "8x8"}
    foreign = ["https://evil.example", "null", "", f"{own}0", f"{own}.evil.example", "http://127.0.0.1", "file://"]
    for origin in foreign:
        for method, path in (("POST", "/v1/images/generations"), ("GET", "/v1/models"), ("OPTIONS", "/v1/models")):
            answer = httpx.request(method, f"{own}{path}", json=ask, headers={"origin": origin})
            assert answer.status_code == 403, (method, origin)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.json()["error"]["code"] == "foreign_origin"
            assert "access-control-allow-origin" not in answer.headers
    two = [("origin", own), ("origin", "https://evil.example")]
    assert httpx.get(f"{server.url}/models", headers=two).status_code == 403
    for headers in ({}, {"origin": own}, {"origin": own.upper()}):
        answer = httpx.post(f"{server.url}{GENERATIONS}", json=ask, headers=headers, timeout=60)
        assert answer.status_code == 200


def test_where_a_key_is_asked_for_it_alone_says_who_may(launch_limited: Any, tmp_path: Path) -> None:
    key = "a-key-of-sixteen-or-more"
    with launch_limited(tmp_path, (key,)) as server:
        headers = {"origin": "https://app.example", "authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/models", headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/models", headers={"origin": "https://app.example"}).status_code == 401


def test_a_slow_head_keeps_nobody_waiting(server: Any) -> None:
    port = httpx.URL(server.url).port
    assert port
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127")
        took = []
        for _ in range(10):
            started = time.monotonic()
            assert httpx.get(f"{server.root}/health/live").status_code == 200
            took.append(time.monotonic() - started)
        assert sorted(took)[5] < 1
    finally:
        for connection in connections:
            connection.close()
    assert httpx.get(f"{server.root}/health/ready").status_code == 200


def test_a_message_that_isnt_http(server: Any) -> None:
    port = httpx.URL(server.url).port
    assert port
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"\r\n" * 99,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert httpx.get(f"{server.root}/health/ready").status_code == 200
