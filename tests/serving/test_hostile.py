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


def spoken(server: Any, *pieces: bytes, pause_sec: float = 0.0) -> bytes:
    """All that the server says to these bytes, until it ends the connection."""
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_sec)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


POST = b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
NO_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "text": b"hello\r\n\r\n",
    "a name with a space": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: y\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length below 0": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    "a length of 5000 digits": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "an unknown coding": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a bad chunk": CHUNKED + b"\r\nxyz\r\n",
    "a chunk longer than it says": CHUNKED + b"\r\n2\r\n{{{{\r\n0\r\n\r\n",
}


def checked(answer: bytes, status: int, code: str) -> None:
    """One answer, with the envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"content-type: application/json" in head
    assert b"\r\nx-request-id: req_" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


def counted(server: Any, status: int) -> float:
    name = f'gigagan_requests_total{{route="other",status="{status}"}} '
    found = httpx.get(f"{server.root}/metrics").text.partition(name)[2].split("\n")[0]
    return float(found or 0)


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_a_message_that_isnt_http(server: Any, sent: bytes) -> None:
    before = counted(server, 400)
    checked(spoken(server, sent), 400, "invalid_http")
    assert counted(server, 400) == before + 1
    # The same in pieces, the last one of which comes when the answer may be under way.
    checked(spoken(server, sent[:3], sent[3:-1], sent[-1:], pause_sec=0.05), 400, "invalid_http")
    assert httpx.get(f"{server.root}/health/ready").status_code == 200


def test_a_head_without_end_is_told_so(server: Any) -> None:
    lines = b"X: y\r\n" * 20_000
    for sent in (
        (b"GET / HTTP/1.1\r\n", lines),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", lines, lines),
        (b"A" * 10**6,),
    ):
        checked(spoken(server, *sent), 431, "head_too_large")
    checked(spoken(server, CHUNKED + b"\r\n0\r\n", lines), 431, "head_too_large")  # after the body
    assert httpx.get(f"{server.root}/health/ready").status_code == 200


def test_bytes_after_an_answer_are_told_apart_from_it(server: Any) -> None:
    first, mark, second = spoken(server, LIVE + b"\r\n" + NO_HTTP["TLS"]).partition(b"live\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert mark
    checked(second, 400, "invalid_http")
    # A body that the route doesn't read is no excuse; what came at once has one answer.
    checked(spoken(server, LIVE + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), 400, "invalid_http")
    # An answer that came before the body's mistake isn't followed by another one.
    early = CHUNKED.replace(b"application/json", b"text/plain") + b"\r\n"
    checked(spoken(server, early, b"xyz\r\n", pause_sec=0.3), 415, "unsupported_media_type")


def test_a_body_in_chunks(server: Any) -> None:
    body = json.dumps({"prompt": "a cat", "size": "8x8", "seed": 1}).encode()
    chunks = b"".join(b"%x;said=so\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\nTrailer: x\r\n\r\n"
    whole = httpx.post(f"{server.url}{GENERATIONS}", content=body, headers={"content-type": "application/json"})
    for sent in ((CHUNKED + b"Connection: close\r\n\r\n" + chunks,), (CHUNKED, b"Connection: close\r\n\r\n", chunks)):
        head, _, found = spoken(server, *sent, pause_sec=0.02).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(found)["data"] == whole.json()["data"]
    # A body with both lengths may be read in two ways, of which one smuggles a request.
    both = CHUNKED + b"Content-Length: 4\r\nConnection: close\r\n\r\n" + chunks
    head, _, found = spoken(server, both).partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") == 1
    assert head.split(b" ")[1] in (b"200", b"400")


def test_requests_sent_ahead_are_answered_in_their_order(server: Any) -> None:
    bodies = [json.dumps({"prompt": "a cat", "size": "8x8", "seed": seed}).encode() for seed in range(5)]
    sent = b"".join(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies)
    found = spoken(server, sent + LIVE + b"Connection: close\r\n\r\n")
    assert found.count(b"HTTP/1.1 200") == 6
    seeds = [int(part.split(b"}")[0]) for part in found.split(b'"seed": ')[1:]]
    assert seeds == list(range(5))
    assert found.endswith(b"live\n")
