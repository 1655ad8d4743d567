"""Model directories and training states: whole or not at all, checked before use, nothing pickled."""

import hashlib
import json
import os
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gigagan import model_files
from gigagan.card import shown_part
from gigagan.checkpoint import find_model, load_model, model_hash, save_model
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


def test_a_full_disk_leaves_the_model_that_was_there(tiny_networks: Networks, saved: Path) -> None:
    before, (G, _) = model_hash(saved), tiny_networks(5)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match=r"model: can't be saved \(.+\); it needs [\d,]+ bytes, "):
            save_model(saved, G, HashedText(), provenance={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert model_hash(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


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
