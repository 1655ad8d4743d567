"""Row G11: whatever a request says, the server and its worker connect to nobody. Counted by the kernel."""

import http.server
import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]
# -D: the server itself is the test's child, so that signals reach it. The one connection shows that they are counted.
TRACED = """
import os, socket, sys
program = "import runpy, socket; socket.socket().connect_ex(('127.0.0.1', 9)); "
program += "runpy.run_module('gigagan', run_name='__main__', alter_sys=True)"
command = [sys.executable, "-c", program, "serve", "--port", "0"]
os.execvp("strace", ["strace", "-D", "-f", "-q", "-e", "trace=connect,sendto,sendmsg", "-o", sys.argv[1], *command])
"""
OUT = re.compile(r"sa_family=AF_INET6?, .*")


class Bait(http.server.BaseHTTPRequestHandler):
    """Redirects to where a cloud keeps its keys."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.end_headers()


@pytest.fixture
def bait() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bait)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cat.png"
    server.shutdown()
    server.server_close()


def ask(client: httpx.Client, url: str) -> None:
    """All the places that could be taken for one where an address stands."""
    prompt = {"prompt": url, "size": "8x8", "seed": 0}
    assert client.post("/images/generations", json=prompt).status_code == 200
    assert client.post("/images/generations", json=prompt | {"mix": {"prompt": url}, "user": url}).status_code == 200
    for name in ("image", "image_url", "images", "url", "mask", "callback_url", "model", "size", "response_format"):
        for value in (url, {"url": url}, [{"type": "image_url", "image_url": {"url": url}}]):
            assert 400 <= client.post("/images/generations", json=prompt | {name: value}).status_code < 500
    assert client.get("/models/" + url.replace("/", "%2F")).status_code == 404
    good = io.BytesIO()
    Image.new("RGB", (4, 4)).save(good, "PNG")
    file = ("x.png", good.getvalue())
    for files in ({"image": (None, url)}, {"image": (url, url.encode())}, {"image": ("x.svg", svg(url))}):
        assert client.post("/images/upscale", files=files).status_code == 400
    for name in ("image[]", "image_url", "url", "mask", "model", "scale", "to", "output_format", "response_format"):
        assert 400 <= client.post("/images/upscale", files={"image": file}, data={name: url}).status_code < 500
    said = {"prompt": url, "user": url}
    assert client.post("/images/upscale", files={"image": (url, file[1])}, data=said).status_code == 200
    headers = {"forwarded": f"for={url}", "x-forwarded-host": url, "referer": url, "x-callback": url}
    assert client.get("/models", headers=headers).status_code == 200


def svg(url: str) -> bytes:
    return f'<?xml version="1.0"?><!DOCTYPE s SYSTEM "{url}"><svg><image href="{url}"/></svg>'.encode()


def test_g11_no_connection_goes_out(launch: Any, tmp_path: Path, bait: str) -> None:
    urls = [bait, "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "//localhost/x.png"]
    urls += [bait.replace("127.0.0.1", name) for name in ("localhost", "2130706433", "[::1]", "0", "127.1")]
    urls += ["http://cat.example/cat.png", "https://cat.example", "ftp://127.0.0.1/x", "gopher://127.0.0.1:9/_x"]
    urls += ["data:image/png;base64,iVBORw0KGgo=", "hf://owner/name", "owner/name", "s3://bucket/cat.png"]
    trace = tmp_path / "trace"
    with launch(tmp_path, "-c", TRACED, str(trace)) as server:
        worker = server.worker()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for url in urls:
                ask(client, url)
    deadline = time.monotonic() + 10  # strace ends after the server
    while not re.search(rf"^{server.process.pid} +\+\+\+ exited with 0", trace.read_text(), re.MULTILINE):
        assert time.monotonic() < deadline, trace.read_text()[-500:]
        time.sleep(0.1)
    # The number is padded to five places.
    assert re.search(rf"^{worker} +\+\+\+ killed", trace.read_text(), re.MULTILINE), "the worker was followed"
    connected = [found[0] for line in trace.read_text().splitlines() if (found := OUT.search(line))]
    assert len(connected) == 1, connected
    assert "sin_port=htons(9)" in connected[0]
