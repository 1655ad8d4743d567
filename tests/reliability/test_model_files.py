"""Row F of the fault matrix: model files that are damaged, hostile or of another model."""

import functools
import json
import os
import pickle
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gigagan.checkpoint import find_model, latest_state, load_model, save_model, save_state
from gigagan.errors import CheckpointError, DataError, GigaGANError
from gigagan.models.frozen import HashedText
from gigagan.training.contrast import load_heads

Networks = Callable[[int], tuple[Any, Any]]


def sizes(ci: int, full: int) -> pytest.MarkDecorator:
    """How many, in CI and in `make matrix`."""
    full_size = pytest.param(full, id="full", marks=[pytest.mark.matrix, pytest.mark.timeout(7200)])
    return pytest.mark.parametrize("count", [pytest.param(ci, id="ci"), full_size])


@functools.cache
def _unpickled() -> list[str]:
    seen: list[str] = []
    sys.addaudithook(lambda event, args: seen.append(event) if event in ("pickle.find_class", "os.system") else None)
    return seen


@pytest.fixture
def model(tiny_networks: Networks, tmp_path: Path) -> Path:
    G, D = tiny_networks(0)
    return save_model(tmp_path / "model", G, HashedText(), provenance={}, discriminator=D)


def refused(path: Path) -> None:
    """A typed error in one line, within a second."""
    begin = time.process_time()
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    assert time.process_time() - begin <= 1


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.slow
def test_f1_no_pickle_is_opened_on_any_way_in(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gigagan.data.features import FeatureFile

    monkeypatch.chdir(tmp_path)
    _unpickled().clear()
    load_model(model)  # imports what it needs
    content = pickle.dumps(Bomb())
    _unpickled().clear()
    for name in ("model.pt", "model.bin", "model.ckpt", "model.pkl", "pytorch_model.bin", ".metadata", "x.safetensors"):
        alone = tmp_path / name
        alone.write_bytes(content)
        refused(alone)
        for load in (lambda p: load_heads(p, resolution=64), lambda p: FeatureFile(p, HashedText())):
            with pytest.raises((CheckpointError, DataError)):
                load(alone)
    for file in sorted(model.rglob("*.safetensors")) + sorted(model.rglob("*.json")):
        before = file.read_bytes()
        file.write_bytes(content)
        refused(model)
        file.write_bytes(before)
    state = save_state(tmp_path / "run", 1, {"G": {}}, {}, keep=1)
    (state / "G.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        latest_state(tmp_path / "run")
    assert _unpickled() == []
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
@sizes(400, 10_000)
def test_f2_mutated_weights(model: Path, count: int) -> None:
    draw = random.Random(count)
    file = model / "generator" / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k in range(count):
        content = bytearray(whole)
        kind = k % 6
        if kind == 0:
            content[:8] = draw.randrange(2 ** draw.randrange(1, 64)).to_bytes(8, "little")
        elif kind == 1:
            content[8 + draw.randrange(length)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del content[draw.randrange(len(content)) :]
        elif kind == 3:
            content[8 + length + draw.randrange(len(content) - 8 - length)] ^= 1 << draw.randrange(8)
        else:
            changed = json.loads(json.dumps(header))
            name = draw.choice([name for name in changed if name != "__metadata__"])
            if kind == 4:
                key, value = draw.choice(
                    [("dtype", "F64"), ("dtype", "X9"), ("shape", [2**62, 2]), ("shape", [-1]), ("shape", [])]
                )
                changed[name][key] = value
            else:
                changed[name]["data_offsets"] = [draw.randrange(-9, 2**40), draw.randrange(2**60)]
            text = json.dumps(changed).encode()
            if draw.random() < 0.3:  # a name twice
                text = text[:-1] + f',"{name}":{json.dumps(header[name])}}}'.encode()
            content = bytearray(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        if bytes(content) == whole:
            continue
        file.write_bytes(content)
        refused(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 100 * 1024  # kilobytes


HOSTILE: list[Any] = [
    10**12,
    2**63,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    "x",
    None,
    [],
    {},
    [[]],
    True,
    [10**9] * 9,
]


@pytest.mark.slow
@sizes(300, 2000)
def test_f3_mutated_configurations(model: Path, count: int) -> None:
    draw = random.Random(count)
    for k in range(count):
        file = model / draw.choice(["generator", "discriminator"]) / "config.json"
        before = file.read_text()
        tree = json.loads(before)
        place = tree if draw.random() < 0.2 else tree["config"]
        key = draw.choice(list(place))
        if isinstance(place[key], dict) and draw.random() < 0.7:
            place, key = place[key], draw.choice(list(place[key]))
        place[key] = draw.choice(HOSTILE)
        text = json.dumps(tree)
        if k % 50 == 0:
            text = '{"config":' * 5000 + text
        file.write_text(text)
        if json.dumps(json.loads(before)) != text:
            refused(model)  # by its own check, or since it isn't the file that was hashed
        file.write_text(before)
    load_model(model)


@pytest.mark.slow
@sizes(100, 500)
def test_f4_hostile_names_of_models(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(count)
    parts = [
        "..",
        "/",
        "\\",
        "\0",
        "etc",
        "passwd",
        "~",
        "%00",
        "C:",
        "http://",
        "pipe:",
        "a" * 3000,
        "\n",
        "emoji",
        ".",
    ]
    for _ in range(count):
        name = "".join(draw.choice(parts) for _ in range(draw.randrange(2, 7)))
        try:
            load_model(name)
        except (GigaGANError, ValueError, OSError) as error:
            assert len(str(error)) < 40_000  # noqa: PT017
        else:
            assert find_model(name) == find_model("emoji")
    assert list(tmp_path.iterdir()) == []


def test_f5_the_first_differences_are_named(model: Path, tiny_networks: Networks, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", tiny_networks(1)[0], HashedText(), provenance={})
    config = json.loads((other / "generator" / "config.json").read_text())
    config["config"]["w_dim"] = 64
    (other / "generator" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"of another shape: .*, .*, .*, \.\.\."):
        load_model(other)
    shutil.copy(model / "discriminator" / "model.safetensors", model / "generator" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ missing: .*; \d+ unexpected: "):
        load_model(model)
