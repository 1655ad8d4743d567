"""Models of the hub: up, down, pinned, out of reach, hostile. Against a hub in the test's own process."""

import json
import os
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gigagan import cli
from gigagan.checkpoint import PACKAGED, find_model, load_model
from gigagan.errors import CheckpointError, ConfigError
from gigagan.hub import at_revision, check_hub_id, is_hub_id
from gigagan.pipeline import Pipeline
from tests.hub.host import TOKEN, Hub, hub

pytest.importorskip("huggingface_hub")

PUSH = """
import sys
from gigagan import Pipeline
print(Pipeline.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2]))
"""
DRAW = """
import hashlib, sys
from gigagan import Pipeline
pipe = Pipeline.from_pretrained(sys.argv[1], revision=(sys.argv[2:] or [None])[0], upsampled=False)
print(hashlib.sha256(pipe("a red apple", seeds=[3]).images[0].tobytes()).hexdigest())
"""


@pytest.fixture
def address() -> Iterator[str]:
    with hub() as found:
        yield found


def python(code: str, *arguments: object, endpoint: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that knows this hub alone; its settings are read when huggingface_hub is imported."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=120, check=False)


def packaged_files() -> dict[str, bytes]:
    """The shipped model, as a repository."""
    folder = PACKAGED / "emoji"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_up_and_down_again(address: str, tmp_path: Path) -> None:
    """The card and the credits go with it; the picture of a seed is the same; a pinned commit needs no connection."""
    pushed = python(PUSH, "emoji", "me/apples", endpoint=address, home=tmp_path / "up")
    assert pushed.returncode == 0, pushed.stderr
    pinned = pushed.stdout.split()[-1]
    files = next(reversed(Hub.commits["me/apples"].values()))
    assert pinned == f"me/apples@{next(reversed(Hub.commits['me/apples']))}"
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: open-gigagan\npipeline_tag: text-to-image\n")
    assert "license: cc-by-4.0\n" in card
    assert files["NOTICE"] == (PACKAGED / "emoji" / "NOTICE").read_bytes()
    assert not [name for name in files if name.startswith("discriminator")]

    near = python(DRAW, "emoji", endpoint=address, home=tmp_path / "down").stdout
    far = python(DRAW, pinned, endpoint=address, home=tmp_path / "down")
    assert far.stdout == near != "", far.stderr
    Hub.requests.clear()
    assert python(DRAW, pinned, endpoint=address, home=tmp_path / "down").stdout == near
    assert Hub.requests == []
    apart = ("me/apples", pinned.partition("@")[2])
    for said in (apart, (pinned, apart[1])):  # as users of transformers write it
        assert python(DRAW, *said, endpoint=address, home=tmp_path / "down").stdout == near
    assert Hub.requests == []
    # A branch is looked up; where the hub is gone, what it was last serves.
    assert python(DRAW, "me/apples", endpoint=address, home=tmp_path / "down").stdout == near
    assert Hub.requests != []
    gone = "http://127.0.0.1:9"
    assert python(DRAW, pinned, endpoint=gone, home=tmp_path / "down").stdout == near
    refused = python(DRAW, "me/pears", endpoint=gone, home=tmp_path / "down")
    assert refused.returncode == 1
    assert (
        "CheckpointError: me/pears: no such directory here, and as OWNER/NAME of the hub it can't be fetched"
        in refused.stderr
    )


@pytest.mark.slow
def test_what_is_fetched(address: str, tmp_path: Path) -> None:
    """The files of the index alone; no pickle, nothing outside, no code but the one that the index hashes."""
    files = packaged_files() | {"model.bin": b"pickle", "evil.py": b"import os"}
    Hub.publish("me/more", files)
    found = python(
        "import sys; from gigagan.checkpoint import find_model; print(find_model(sys.argv[1]))",
        "me/more",
        endpoint=address,
        home=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    folder = Path(found.stdout.strip())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == set(packaged_files())
    assert load_model(folder).hash == load_model("emoji").hash

    index = json.loads(files["model_index.json"])
    for name in ("../../outside", "/etc/passwd", "generator/model.pt", "generator/weights.bin", "a\nb"):
        hostile = json.dumps(index | {"sha256": index["sha256"] | {name: "0" * 64}}).encode()
        Hub.publish("me/hostile", files | {"model_index.json": hostile})
        refused = python(DRAW, "me/hostile", endpoint=address, home=tmp_path)
        assert "only plain safe ones are fetched" in refused.stderr.splitlines()[-1], name
    Hub.publish("me/other", {"README.md": b"of another library", "model_index.json": b"{}"})
    assert "CheckpointError" in python(DRAW, "me/other", endpoint=address, home=tmp_path).stderr.splitlines()[-1]


@pytest.mark.slow
def test_refusals_are_one_line(address: str, tmp_path: Path) -> None:
    program = "from gigagan.cli import main; main()"
    command = ("generate", "a cat", "--out", tmp_path / "out", "--model")
    for model, said in {
        "me/nothing": "no such directory here, and the hub has no such model",
        "me/nothing@v2": "no such directory here, and the hub has no such model",
    }.items():
        refused = python(program, *command, model, endpoint=address, home=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    forbidden = python(PUSH, "emoji", "me/apples", endpoint=address, home=tmp_path, HF_TOKEN="wrong")
    assert "the hub refuses (401)" in forbidden.stderr.splitlines()[-1]


def hostile_names(count: int) -> list[str]:
    """Names that are no hub id, of every kind that has fooled a loader."""
    draw = random.Random(0)
    parts = ["..", ".", "~", "a", "etc", "passwd", "%2e%2e", "a b", "a\0", "\n", "-x", "é", "http:", "", "@", "a" * 300]
    made = ["/".join(draw.choices(parts, k=draw.randint(1, 5))) for _ in range(count)]
    made += ["../../etc", "a/../b", "a/b/c", "hf://a/b", "file:///etc/passwd", "a/b@../c", "a//b", "me/..", "x" * 5000]
    return [name for name in made if not is_hub_id(name)] + ["".join(draw.choices(string.printable, k=40))]


def test_f4_hostile_names_reach_no_file_and_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row F4, the loader's part and the command's: each is refused as a model that isn't there."""
    monkeypatch.chdir(tmp_path)

    def no_connection(event: str, _: object) -> None:
        assert not watched or event not in ("socket.connect", "socket.getaddrinfo"), event

    watched = True
    sys.addaudithook(no_connection)
    names = hostile_names(600)
    assert len(names) >= 500
    for name in names:
        with pytest.raises(CheckpointError):
            load_model(name)
        with pytest.raises(CheckpointError):
            check_hub_id(name)
        assert cli.run(["generate", "a cat", f"--model={name}", "--out=pictures"]) == 2, name
    watched = False
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies here wins, and a missing directory beside others is a mistake, not a question for the hub."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert find_model("runs/mine") == Path("runs/mine")
    assert find_model(PACKAGED / "emoji" / "model_index.json") == PACKAGED / "emoji"
    with pytest.raises(CheckpointError, match="no such model directory"):
        load_model("runs/mine")


def test_a_revision_apart_from_the_name() -> None:
    """It is of the hub or a mistake: a directory, and a model in the package, have just one."""
    assert at_revision("me/apples", "refs/pr/1") == at_revision("me/apples@refs/pr/1", "refs/pr/1")
    wrong = [("me/apples@v1", "v2", "give one"), ("emoji", "v1", "leave revision out"), ("absent", "v1", "OWNER/NAME")]
    wrong += [(str(PACKAGED / "emoji"), "main", "leave revision out"), ("me/apples", "", "expected a branch")]
    for path, revision, told in [*wrong, ("me/apples", "../v1", "expected a branch"), ("a/b/c", "v1", "OWNER/NAME")]:
        with pytest.raises(ConfigError, match=told) as caught:
            Pipeline.from_pretrained(path, revision=revision)
        assert "\n" not in str(caught.value)
