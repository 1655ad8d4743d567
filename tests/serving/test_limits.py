"""Each limit to the byte: what is just allowed is served, one more is refused."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from gigagan.serving.limits import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_PICTURES, Limits

GENERATIONS = "/images/generations"
SMALL = {"prompt": "a cat", "size": "8x8"}
KEYS = ("first-key-of-sixteen-or-more", "second-key-of-sixteen-or-more")


def asked(server: Any, **said: Any) -> tuple[int, str]:
    """Status, and the code of the error."""
    answer = httpx.post(f"{server.url}{GENERATIONS}", timeout=60, **said)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def test_a_body(server: Any) -> None:
    kind = {"content-type": "application/json"}
    body = json.dumps(SMALL).encode()
    for length, expected in ((MAX_BODY_BYTES, (200, "")), (MAX_BODY_BYTES + 1, (413, "body_too_large"))):
        padded = body.ljust(length)
        assert asked(server, content=padded, headers=kind) == expected
        assert (
            asked(server, content=iter([padded[:1000], padded[1000:]]), headers=kind) == expected
        )  # its length unsaid


def test_a_prompt(server: Any) -> None:
    most = Limits().prompt_chars
    assert asked(server, json={**SMALL, "prompt": "é" * most}) == (200, "")
    assert asked(server, json={**SMALL, "prompt": "é" * (most + 1)}) == (400, "string_above_max_length")


def test_pictures(server: Any) -> None:
    assert asked(server, json={**SMALL, "n": MAX_PICTURES}) == (200, "")
    assert asked(server, json={**SMALL, "n": MAX_PICTURES + 1}) == (400, "invalid_value")
    assert asked(server, json={**SMALL, "n": 0}) == (400, "invalid_value")


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("filled", ["header", "target"])
def test_a_head(server: Any, filled: str, pieces: int) -> None:
    port = httpx.URL(server.url).port
    for length, expected in ((MAX_HEAD_BYTES, b"200"), (MAX_HEAD_BYTES + 1, b"431"), (4 * MAX_HEAD_BYTES, b"431")):
        head = "GET /v1/models{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Long: x{}\r\n\r\n"
        fill = "?" + (length - len(head) + 3) * "y"
        sent = (head.format("", fill) if filled == "header" else head.format(fill, "")).encode()
        assert len(sent) == length
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for n in range(pieces):
                connection.sendall(sent[n * length // pieces : (n + 1) * length // pieces])
            found = b"".join(iter(lambda: connection.recv(65536), b""))
        assert found.split(b" ")[1] == expected, (length, found)
        if expected == b"431":
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "head_too_large"


def test_requests_of_a_key(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path, KEYS, per_key=2) as server:
        body = json.dumps(SMALL).encode()
        first, second = ({"authorization": f"Bearer {key}"} for key in KEYS)
        head = f"POST /v1{GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {KEYS[0]}\r\nContent-Length: {len(body)}\r\n\r\n"
        address = ("127.0.0.1", httpx.URL(server.url).port)
        with socket.create_connection(address, timeout=60) as one, socket.create_connection(address, timeout=60) as two:
            one.sendall(head.encode() + body[:-1])
            assert asked(server, json=SMALL, headers=first) == (200, "")
            two.sendall(head.encode() + body[:-1])
            assert httpx.get(f"{server.url}/models", headers=first).status_code == 429
            assert asked(server, json=SMALL, headers=first) == (429, "concurrency_limit")
            assert asked(server, json=SMALL, headers=second) == (200, "")
            one.sendall(body[-1:])
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
            assert asked(server, json=SMALL, headers=first) == (200, "")
            two.sendall(body[-1:])
            assert two.recv(4096).startswith(b"HTTP/1.1 200")
