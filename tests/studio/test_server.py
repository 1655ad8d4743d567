"""The studio as a server: its gate, and the command that starts and ends it."""

import asyncio
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gigagan import cli
from gigagan.errors import ConfigError
from gigagan.studio import app
from gigagan.studio.app import serve
from gigagan.studio.gate import Gate

# The gate.


def answer(gate: Gate, **headers: str) -> tuple[int, dict[bytes, bytes]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(gate({"type": "http", "headers": listed}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


async def inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def test_a_websocket_is_closed_in_its_own_words() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "headers": [(b"host", b"evil.example")]}
    asyncio.run(Gate(inside, hosts=["localhost"], password="")(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_page_elsewhere_cant_reach_in_by_its_own_name() -> None:
    gate = Gate(inside, hosts=["127.0.0.1", "localhost", "[::1]"], password="")
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860"):
        assert answer(gate, host=host)[0] == 200
    for host in ("evil.example:7860", "127.0.0.1.evil.example", ""):
        assert answer(gate, host=host)[0] == 421
    assert answer(gate)[0] == 421


def test_the_password_is_asked_of_everything() -> None:
    gate = Gate(inside, hosts=[], password="long enough")
    status, headers = answer(gate, host="example.org")
    assert status == 401
    assert headers[b"www-authenticate"].startswith(b"Basic")
    for credentials, expected in (("me:long enough", 200), ("me:long", 401), ("long enough", 401), ("me:", 401)):
        given = base64.b64encode(credentials.encode()).decode()
        assert answer(gate, host="x", authorization=f"Basic {given}")[0] == expected
    for given in ("Basic ???", "Bearer long enough", "Basic"):
        assert answer(gate, host="x", authorization=given)[0] == 401


def test_every_answer_forbids_what_is_elsewhere() -> None:
    _, headers = answer(Gate(inside, hosts=[], password=""), host="x")
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


# The command.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in; set GIGAGAN_PASSWORD"),
        (["--host", "0.0.0.0", "--password", "short"], "the password has 5 characters; expected at least 8"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_the_command_refuses(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
    monkeypatch.delenv("GIGAGAN_PASSWORD", raising=False)
    assert cli.run(["ui", "--port", "0", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_port_that_is_taken_is_one_line() -> None:
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}: .* give another --host or --port"):
            serve(Gate(inside, hosts=[], password=""), "127.0.0.1", port, lambda address: None)


def test_sigterm_leaves_no_folder(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "gigagan", "ui", "--port", "0", "--model", str(small_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}) as ui:
        assert ui.stdout is not None
        try:
            assert ui.stdout.readline().startswith("http://127.0.0.1:")
            assert list(tmp_path.glob("gigagan-ui-*"))
            ui.terminate()
            assert ui.wait(120) == -signal.SIGTERM
        finally:
            ui.kill()
    assert not list(tmp_path.glob("gigagan-ui-*"))


def test_a_card_may_be_in_any_encoding(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "README.md").write_bytes("---\nlicense: mit\n---\n# Caf\xe9".encode("latin-1"))
    cards: list[str] = []
    monkeypatch.setattr(app, "make_app", lambda pipe, folder, card, **others: cards.append(card))
    monkeypatch.setattr(app, "serve", lambda *args: None)
    assert cli.run(["ui", "--model", str(model)]) == 0
    assert cards == ["# Caf\ufffd"]
