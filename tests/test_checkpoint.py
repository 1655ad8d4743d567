"""Model directories and training states: whole or not at all, checked before use, nothing pickled."""

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gigagan import checkpoint, commit, model_files
from gigagan.card import shown_part
from gigagan.checkpoint import find_model, latest_state, load_model, model_hash, save_model, save_state
from gigagan.errors import CheckpointError
from gigagan.model_files import read_index
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator

Networks = Callable[[int], tuple[Generator, Discriminator]]
PROVENANCE = {"kimg": 1.5, "preset": "tiny", "config": {"a": [1, 2]}}


@pytest.fixture
def saved(tiny_networks: Networks, tmp_path: Path) -> Path:
    G, D = tiny_networks(0)
    return save_model(tmp_path / "model", G, HashedText(), provenance=PROVENANCE, discriminator=D)


def edited(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def one_line(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    message = str(error.value)
    assert "\n" not in message
    return message


# Models.


def test_a_model_comes_back_to_the_bit(tiny_networks: Networks, saved: Path) -> None:
    before = torch.random.get_rng_state()
    model = load_model(saved)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.discriminator is not None
    for network, original in zip((model.generator, model.discriminator), tiny_networks(0), strict=True):
        ours, theirs = network.state_dict(), original.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(t.is_meta for t in [*network.parameters(), *network.buffers()])
    assert model.generator.cfg == tiny_networks(0)[0].cfg
    assert model.index["provenance"] == PROVENANCE
    assert model.hash == model_hash(saved)


def test_without_the_discriminator_its_files_are_left_alone(saved: Path) -> None:
    (saved / "discriminator" / "model.safetensors").unlink()
    assert load_model(saved, discriminator=False).discriminator is None
    assert "discriminator" in one_line(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_half_the_size_and_rounded_once(
    tiny_networks: Networks, tmp_path: Path, dtype: torch.dtype
) -> None:
    G, _ = tiny_networks(0)
    sizes = [
        (save_model(tmp_path / str(d), G, HashedText(), provenance={}, dtype=d) / "generator/model.safetensors")
        .stat()
        .st_size
        for d in (torch.float32, dtype)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    for name, tensor in load_model(tmp_path / str(dtype)).generator.state_dict().items():
        assert torch.equal(tensor, G.state_dict()[name].to(dtype).to(torch.float32))


def test_a_weight_too_large_for_the_file_is_refused(tiny_networks: Networks, tmp_path: Path) -> None:
    G, _ = tiny_networks(0)
    G.mapping.w_avg[0] = 1e6
    with pytest.raises(CheckpointError, match=r"w_avg isn't finite in float16; use float32"):
        save_model(tmp_path / "model", G, HashedText(), provenance={}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_every_generator_goes_with_its_class_for_diffusers(saved: Path) -> None:
    written = (saved / "pipeline.py").read_bytes()
    assert compile(written, "pipeline.py", "exec")
    for model in (saved, find_model("emoji")):
        assert (model / "pipeline.py").read_bytes() == written
        assert read_index(model)["sha256"]["pipeline.py"] == hashlib.sha256(written).hexdigest()


def test_files_are_as_readable_as_others(saved: Path) -> None:
    modes = {file.stat().st_mode for file in saved.rglob("*") if file.is_file()}
    assert len(modes) == 1


def test_the_hash_is_of_what_draws(tiny_networks: Networks, saved: Path, tmp_path: Path) -> None:
    G, D = tiny_networks(0)
    again = save_model(tmp_path / "again", G, HashedText(), provenance={"other": 1})
    assert model_hash(again) == model_hash(saved)
    G.mapping.w_avg[0] += 1e-3
    assert model_hash(save_model(again, G, HashedText(), provenance={}, discriminator=D)) != model_hash(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("mapping.w_avg"), r"1 missing: mapping\.w_avg"),
        (lambda t: t.update(w_mean=t.pop("mapping.w_avg")), r"1 missing: mapping\.w_avg; 1 unexpected: w_mean"),
        (
            lambda t: t.update({"mapping.w_avg": torch.zeros(7)}),
            r"1 of another shape: mapping\.w_avg \[7\] instead of \[32\]",
        ),
        (lambda t: t.update({"mapping.w_avg": torch.zeros(32).double()}), r"1 of another dtype: mapping\.w_avg F64"),
        (lambda t: t["mapping.w_avg"].add_(1), r"generator/model\.safetensors: sha256 is"),
        (lambda t: t.clear(), r"\d+ missing: .*, \.\.\."),
    ],
    ids=["missing", "renamed", "shape", "dtype", "value", "empty"],
)
def test_a_changed_tensor_is_named(saved: Path, change: Callable[[dict[str, Tensor]], None], told: str) -> None:
    edited(saved / "generator" / "model.safetensors", change)
    assert re.search(told, one_line(saved))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_file_is_one_line(saved: Path, keep: int) -> None:
    file = saved / "generator" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "isn't a whole safetensors file" in one_line(saved)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("w_dim", 10**9, "at most 65536"),
        ("w_dim", -1, "config.w_dim"),
        ("w_dim", 64, "of another shape"),
        ("blocks", [10**9, 1, 1], "at most 256"),
        ("resolution", 48, "power of two"),
        ("mapping_layers", 10**6, "at most 256"),
        ("surprise", 1, "config.surprise"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_built(saved: Path, key: str, value: Any, told: str) -> None:
    file = saved / "generator" / "config.json"
    config = json.loads(file.read_text())
    config["config"][key] = value
    file.write_text(json.dumps(config))
    assert told in one_line(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generator": ["os", "system"]}, "expected ['gigagan', 'Generator']"),
        ({"generator": None}, "expected ['gigagan', 'Generator']"),
        ({"format_version": 99}, "update open-gigagan"),
        ({"sha256": {}}, "has no sha256 of generator/config.json"),
        ({"sha256": {"../secret": "0"}}, "no such file"),
        ({"sha256": 3}, "sha256 is missing"),
    ],
)
def test_a_bad_index_is_one_line(saved: Path, change: dict[str, Any], told: str) -> None:
    (saved.parent / "secret").write_text("x")
    file = saved / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert told in one_line(saved)


@pytest.mark.parametrize("name", ["model_index.json", "generator/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_damaged_json_is_one_line(saved: Path, name: str, content: str) -> None:
    (saved / name).write_text(content)
    assert name.rpartition("/")[2] in one_line(saved)


@pytest.mark.parametrize("suffix", model_files.PICKLES)
def test_no_pickle_is_opened(saved: Path, suffix: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(saved.parent / "exploded"),)

    alone = saved.parent / f"model{suffix}"
    alone.write_bytes(pickle.dumps(Bomb()))
    assert "a pickle can run code" in one_line(alone)
    inside = saved / "generator" / f"model{suffix}"
    alone.rename(inside)
    (saved / "generator" / "model.safetensors").unlink()
    assert f"{inside.name} is a pickle" in one_line(saved)
    assert not (saved.parent / "exploded").exists()


def test_other_places_are_one_line(saved: Path, tmp_path: Path) -> None:
    assert "no such model directory" in one_line(tmp_path / "nowhere")
    (tmp_path / "note.txt").write_text("x")
    assert "is a file" in one_line(tmp_path / "note.txt")
    assert f"its model is {saved}" in one_line(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in one_line(tmp_path / "empty")


def test_only_a_model_directory_is_replaced(tiny_networks: Networks, saved: Path, tmp_path: Path) -> None:
    G, _ = tiny_networks(5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(CheckpointError, match="exists and is no model directory"):
            save_model(tmp_path / name, G, HashedText(), provenance={})
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"

    (saved / "notes.txt").write_text("keep me")
    save_model(saved, G, HashedText(), provenance={})
    assert (saved / "notes.txt").read_text() == "keep me"
    assert not (saved / "discriminator").exists()
    assert torch.equal(load_model(saved).generator.mapping.w_avg, G.mapping.w_avg)


# Commits. Every file operation of a save fails in turn, as if the process had died there.

OPERATIONS = [
    (commit, "save_file"),
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


def test_a_name_is_the_model_of_that_name_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find_model("emoji")
    assert packaged.name == "emoji"
    assert packaged.parent.name == "pretrained"
    assert find_model("./emoji") == Path("./emoji")  # a path stays one
    assert find_model("absent") == Path("absent")
    (tmp_path / "emoji").mkdir()
    assert find_model("emoji") == Path("emoji")  # what is there comes first


def test_a_card_has_lines_for_the_hub_that_people_arent_shown(tmp_path: Path, tiny_networks: Any) -> None:
    generator, _ = tiny_networks(0)
    path = save_model(tmp_path / "m", generator, HashedText(max_tokens=12), provenance={"weights_licence": "MIT"})
    card = (path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: open-gigagan\npipeline_tag: text-to-image\n")
    assert "\nlicense: mit\n---\n" in card
    assert shown_part(card).startswith("# A GigaGAN text-to-image model\n")
    assert shown_part("# Mine\n\n---\n\nnotes\n\n---\n") == "# Mine\n\n---\n\nnotes\n\n---\n"
