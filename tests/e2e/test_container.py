"""The container file without an engine: linted, its context built, its command run and asked what the engine asks."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instruction and value of each line of the file."""
    parse = pytest.importorskip("dockerfile_parse")
    with (ROOT / "Dockerfile").open("rb") as file:
        structure = parse.DockerfileParser(fileobj=file, cache_content=True).structure
    return [(step["instruction"], step["value"]) for step in structure if step["instruction"] != "COMMENT"]


def one(steps: list[tuple[str, str]], instruction: str) -> str:
    (value,) = [text for name, text in steps if name == instruction]
    return value


@pytest.mark.e2e
def test_a_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint isn't here")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.e2e
def test_its_torch_is_the_makefiles(steps: list[tuple[str, str]]) -> None:
    said = subprocess.run(["make", "-s", "print-torch"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert any(f'"{said.stdout.strip()}"' in value for name, value in steps if name == "RUN")


@pytest.mark.e2e
def test_what_is_copied_suffices_to_build_the_package(steps: list[tuple[str, str]], tmp_path: Path) -> None:
    """The sources of COPY are let through by .dockerignore and make a wheel with the model in it."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [value.split()[:-1] for name, value in steps if name == "COPY" and not value.startswith("--from")]
    sources = {source for line in copied for source in line}
    assert sources == allowed
    context = tmp_path / "context"
    context.mkdir()
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / source, context / source)
    made = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(context), "-w", str(tmp_path)]
    subprocess.run(made, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "gigagan/pretrained/emoji/generator/model.safetensors" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.e2e
def test_the_command_serves_with_a_key_alone_and_stops(steps: list[tuple[str, str]]) -> None:
    """ENTRYPOINT, HEALTHCHECK and STOPSIGNAL as an engine uses them, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    users = [value for name, value in steps if name == "USER"]
    assert users, "it would run as root"
    assert users[-1] != "root"
    command = [port if part == "8000" else part for part in json.loads(one(steps, "ENTRYPOINT"))]
    command[0] = str(BIN / command[0])
    bare = {name: value for name, value in os.environ.items() if name != "GIGAGAN_API_KEYS"}
    refused = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "GIGAGAN_API_KEYS" in refused.stderr

    options, _, check = one(steps, "HEALTHCHECK").partition("CMD ")
    assert {part.split("=")[0] for part in shlex.split(options)} == {"--interval", "--timeout", "--start-period"}
    asks = [sys.executable if part == "python" else part.replace("8000", port) for part in json.loads(check)]
    server = subprocess.Popen(command, env=bare | {"GIGAGAN_API_KEYS": "k" * 24})
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(asks, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.5)
        server.send_signal(getattr(signal, one(steps, "STOPSIGNAL")))
        assert server.wait(timeout=40) == 0
    finally:
        server.kill()
    assert subprocess.run(asks, capture_output=True, check=False).returncode != 0
