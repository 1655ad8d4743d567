"""Saves that are cut off at any file operation: a model, a run's state, whole or not at all. And states themselves."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gigagan import checkpoint, commit
from gigagan.checkpoint import latest_state, load_model, save_model, save_state
from gigagan.data import tensor_files
from gigagan.errors import CheckpointError
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator

Networks = Callable[[int], tuple[Generator, Discriminator]]


@pytest.fixture
def saved(tiny_networks: Networks, tmp_path: Path) -> Path:
    G, D = tiny_networks(0)
    return save_model(tmp_path / "model", G, HashedText(), provenance={}, discriminator=D)


# Commits. Every file operation of a save fails in turn, as if the process had died there.

OPERATIONS = [
    (tensor_files, "save_file"),
    (checkpoint, "write_json"),
    (checkpoint, "sync"),
    (commit, "sync"),
    (os, "rename"),
]


class Died(BaseException):
    pass


def deaths(monkeypatch: pytest.MonkeyPatch, save: Callable[[], object], *, cleanup: bool) -> Iterator[str]:
    """Runs `save` again and again, dying at its first, second ... operation, until it survives."""
    real = {name: getattr(module, name) for module, name in OPERATIONS}
    for number in range(1000):
        count = -1
        dead = False

        def operation(name: str, *args: Any, number: int = number, **kwargs: Any) -> Any:
            nonlocal count, dead
            count += 1
            if count >= number and (count == number or not cleanup):
                dead = True
                raise Died(f"{name} {args}")
            return real[name](*args, **kwargs)

        with monkeypatch.context() as patch:
            for module, name in OPERATIONS:
                patch.setattr(module, name, lambda *a, name=name, **k: operation(name, *a, **k))
            if not cleanup:  # A killed process tidies nothing up.
                patch.setattr(commit.shutil, "rmtree", lambda *a, **k: None)
            try:
                save()
                told = ""
            except Died as death:
                told = str(death)
        assert dead == bool(told)
        if not dead:
            return
        yield told
    raise AssertionError("never survived")


@pytest.mark.parametrize("cleanup", [True, False], ids=["raised", "killed"])
def test_a_model_is_the_old_or_the_new_one_at_every_instant(
    tiny_networks: Networks, saved: Path, monkeypatch: pytest.MonkeyPatch, cleanup: bool
) -> None:
    old, new = tiny_networks(0)[0], tiny_networks(7)[0]
    count = 0
    (saved / "notes").mkdir()
    (saved / "notes" / "mine.txt").write_text("keep me")
    for death in deaths(monkeypatch, lambda: save_model(saved, new, HashedText(), provenance={}), cleanup=cleanup):
        count += 1
        w_avg = load_model(saved).generator.mapping.w_avg
        assert torch.equal(w_avg, old.mapping.w_avg) or torch.equal(w_avg, new.mapping.w_avg), death
        assert (saved / "notes" / "mine.txt").read_text() == "keep me", death
        save_model(saved, old, HashedText(), provenance={})
        assert [entry.name for entry in saved.parent.iterdir()] == ["model"], death
    assert count >= 8
    assert torch.equal(load_model(saved).generator.mapping.w_avg, new.mapping.w_avg)


@pytest.mark.parametrize("cleanup", [True, False], ids=["raised", "killed"])
def test_a_run_has_a_whole_state_at_every_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleanup: bool
) -> None:
    save_state(tmp_path, 100, state(100), {}, keep=1)
    count = 0
    for _ in deaths(monkeypatch, lambda: save_state(tmp_path, 200, state(200), {}, keep=1), cleanup=cleanup):
        count += 1
        found = latest_state(tmp_path)
        assert found is not None
        assert_state(found.tensors, state(found.nimg))
        assert not list((tmp_path / "checkpoints").glob(".*"))
        if found.nimg == 200:
            break
    assert count >= 8


# Training states.


def state(nimg: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(nimg)
    return {
        "G": {"w": torch.randn(4, 3, generator=generator), "half": torch.randn(5, generator=generator).bfloat16()},
        "opt_G": {"w/step": torch.tensor(float(nimg)), "w/exp_avg": torch.randn(4, 3, generator=generator).t()},
        "rng": {"cpu": generator.get_state(), "big": torch.tensor([2**62 + 1])},
        "empty": {},
    }


def assert_state(ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]) -> None:
    assert list(ours) == list(theirs)
    for component, tensors in theirs.items():
        assert set(ours[component]) == set(tensors)
        for name, tensor in tensors.items():
            assert ours[component][name].dtype == tensor.dtype
            assert torch.equal(ours[component][name], tensor)


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
    meta = {"seed": 3, "ada_p": 0.125, "cursor": [1, {"shard": 2}]}
    path = save_state(tmp_path, 12345, state(12345), meta, keep=2)
    assert path == tmp_path / "checkpoints" / "step-00012345"
    found = latest_state(tmp_path)
    assert found is not None
    assert (found.path, found.nimg, found.meta) == (path, 12345, meta)
    assert_state(found.tensors, state(12345))
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_old_states_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    for nimg in (5, 100_000_000, 30, 40):
        save_state(tmp_path, nimg, state(nimg), {}, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000030", "step-00000040", "step-100000000"]
    save_state(tmp_path, 40, state(41), {}, keep=2)
    assert_state(latest_state_at(tmp_path, 40), state(41))


def latest_state_at(run_dir: Path, nimg: int) -> dict[str, dict[str, Tensor]]:
    return checkpoint._read_state(run_dir / "checkpoints" / f"step-{nimg:08d}", "cpu").tensors


@pytest.mark.parametrize("name", ["G.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_state_is_skipped(tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_state(tmp_path, 1, state(1), {}, keep=3)
    newest = save_state(tmp_path, 2, state(2), {}, keep=3)
    file = newest / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with caplog.at_level(logging.WARNING):
        found = latest_state(tmp_path)
    assert found is not None
    if name == "manifest.json" and damage == "flipped" and found.nimg == 2:
        return  # the flipped bit was in white space
    assert found.nimg == 1
    assert "step-00000002" in caplog.text


def test_a_run_doesnt_begin_anew_over_damaged_states(tmp_path: Path) -> None:
    path = save_state(tmp_path, 1, state(1), {}, keep=3)
    (path / "G.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 1 states is whole"):
        latest_state(tmp_path)


def test_an_old_state_that_can_not_be_deleted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def held(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    save_state(tmp_path, 1, {"G": {"w": torch.ones(1)}}, {}, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", held)  # a server keeps the files that somebody reads
        save_state(tmp_path, 2, {"G": {"w": torch.ones(1)}}, {}, keep=1)
    assert "an old state isn't deleted (Directory not empty)" in caplog.text
    save_state(tmp_path, 3, {"G": {"w": torch.ones(1)}}, {}, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
