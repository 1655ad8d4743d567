"""Each limit to the unit: what is just allowed is served, one more is refused, and the answer names its field."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gigagan.serving import upscale
from gigagan.serving.api_error import ApiError
from gigagan.serving.limits import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_PICTURES, MAX_UPLOAD_BYTES, Limits
from gigagan.serving.wire import Facts

GENERATIONS = "/images/generations"
UPSCALE = "/images/upscale"
SMALL = {"prompt": "a cat", "size": "8x8"}
KEYS = ("first-key-of-sixteen-or-more", "second-key-of-sixteen-or-more")
SERVED = (200, "", None)
Answer = tuple[int, str, str | None]


def asked(server: Any, path: str = GENERATIONS, **said: Any) -> Answer:
    """Status, and the error's code and field."""
    answer = httpx.post(f"{server.url}{path}", timeout=60, **said)
    error = answer.json().get("error", {"code": "", "param": None})
    return answer.status_code, error["code"], error["param"]


def file(width: int = 4, height: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_body(server: Any) -> None:
    kind = {"content-type": "application/json"}
    body = json.dumps(SMALL).encode()
    for length, expected in ((MAX_BODY_BYTES, SERVED), (MAX_BODY_BYTES + 1, (413, "body_too_large", None))):
        padded = body.ljust(length)
        assert asked(server, content=padded, headers=kind) == expected
        assert (
            asked(server, content=iter([padded[:1000], padded[1000:]]), headers=kind) == expected
        )  # its length unsaid


def test_a_form(server: Any) -> None:
    form = httpx.Request("POST", server.url, files={"image": file()})
    body, kind = form.read(), {"content-type": form.headers["content-type"]}
    assert asked(server, UPSCALE, content=body, headers=kind) == SERVED
    for length, expected in ((MAX_UPLOAD_BYTES, SERVED), (MAX_UPLOAD_BYTES + 1, (413, "body_too_large", "image"))):
        padded = body + bytes(length - len(body))  # after its last boundary
        assert asked(server, UPSCALE, content=padded, headers=kind) == expected
        assert asked(server, UPSCALE, content=iter([padded[:1000], padded[1000:]]), headers=kind) == expected


def test_a_prompt(server: Any) -> None:
    most, over = "é" * Limits().prompt_chars, "é" * (Limits().prompt_chars + 1)
    refused = (400, "string_above_max_length")
    assert asked(server, json={**SMALL, "prompt": most, "mix": {"prompt": most}}) == SERVED
    assert asked(server, json={**SMALL, "prompt": over}) == (*refused, "prompt")
    assert asked(server, json={**SMALL, "mix": {"prompt": over}}) == (*refused, "mix.prompt")
    for prompt, expected in ((most, SERVED), (over, (*refused, "prompt"))):
        assert asked(server, UPSCALE, files={"image": file()}, data={"prompt": prompt}) == expected


def test_pictures(server: Any) -> None:
    assert asked(server, json={**SMALL, "n": MAX_PICTURES}) == SERVED
    for n in (0, MAX_PICTURES + 1):
        assert asked(server, json={**SMALL, "n": n}) == (400, "invalid_value", "n")
    loop = {**SMALL, "output_format": "gif"}
    for frames, expected in ((2, SERVED), (16, SERVED)):
        assert asked(server, json={**loop, "frame_count": frames}) == expected
    for frames in (1, 17):
        assert asked(server, json={**loop, "frame_count": frames}) == (400, "invalid_value", "frame_count")


def test_a_size(server: Any) -> None:
    (model,) = httpx.get(f"{server.url}/models").json()["data"]
    for size in model["sizes"]:
        side = int(size.partition("x")[0])
        assert asked(server, json={**SMALL, "size": size}) == SERVED
        for other in (f"{side + 1}x{side + 1}", f"{side - 1}x{side - 1}", f"{side}x{side + 1}"):
            assert asked(server, json={**SMALL, "size": other}) == (400, "invalid_size", "size")


def test_pixels_of_a_picture_that_comes_in() -> None:
    facts = Facts("abc", "float32", "cpu", "minilm", (64,), 6, 4, 0.7, factor=8)
    for width, allowed in ((8_000, True), (8_001, False)):
        form = httpx.Request("POST", "http://x", files={"image": file(width, 5_000)}, data={"scale": "2"})
        said = form.read(), form.headers["content-type"], facts, "emoji", Limits(upscale_pixels=2**30)
        if allowed:
            assert upscale.order(*said).item.scale == 2
        else:
            with pytest.raises(ApiError) as caught:
                upscale.order(*said)
            assert (caught.value.status, caught.value.code, caught.value.param) == (400, "image_too_large", "image")


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
            assert asked(server, json=SMALL, headers=first) == SERVED
            two.sendall(head.encode() + body[:-1])
            assert httpx.get(f"{server.url}/models", headers=first).status_code == 429
            assert asked(server, json=SMALL, headers=first) == (429, "concurrency_limit", None)
            assert asked(server, json=SMALL, headers=second) == SERVED
            one.sendall(body[-1:])
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
            assert asked(server, json=SMALL, headers=first) == SERVED
            two.sendall(body[-1:])
            assert two.recv(4096).startswith(b"HTTP/1.1 200")
