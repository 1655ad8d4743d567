"""M taught by itself: z tells the style where a caption names none, and all else stays."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from gigagan import checkpoint, config
from gigagan.config import RunConfig
from gigagan.data.dataset import CaptionedImages, open_dataset
from gigagan.data.features import CaptionFeatures
from gigagan.data.sampling import STYLE_INDEX
from gigagan.errors import ConfigError, DataError
from gigagan.models.frozen import HashedText
from gigagan.training import distill_mapping as module
from gigagan.training.distill_mapping import distill_mapping, read_lessons
from gigagan.training.loop import train
from gigagan.training.micro_batches import telling
from gigagan.training.state import TrainState

CPU = torch.device("cpu")
STYLES = {"flat": "a flat icon of {}", "outline": "a black and white icon of {}", "doodle": "a cute doodle of {}"}
THINGS = ("an apple", "a barn", "a cat", "a drum", "an egg", "a fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six things in three styles."""
    folder = tmp_path_factory.mktemp("styles")
    lines = []
    for k, thing in enumerate(THINGS):
        for n, (style, template) in enumerate(STYLES.items()):
            Image.new("RGB", (32, 32), (40 * k, 80 * n, 90)).save(folder / f"{style}-{k}.png")
            text = template.format(thing)
            captions = [
                {"text": text},
                {"text": thing, "styled": False},
                {"text": f"{text} on a red background", "background": [214, 58, 52]},
            ]
            lines.append(json.dumps({"file_name": f"{style}-{k}.png", "text": captions, "style": style}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def dataset(folder: Path) -> CaptionedImages:
    return open_dataset(folder, resolution=32)


def taught_run(*overrides: str) -> RunConfig:
    size = ("train.batch=8", "train.batch_gpu=8", "train.kimg_per_tick=0.008", "train.max_sec_per_tick=1000")
    told = ("data.style_by_seed=true", "data.styleless_prob=0.5", "train.distill_mapping_kimg=0.016")
    return config.load("tiny", [*size, *told, *overrides])


def state_at(nimg: int) -> TrainState:
    torch.manual_seed(0)
    wide = ("generator.mapping_lr_multiplier=1", "generator.mapping_layers=4", "generator.w_dim=64")
    state = TrainState(taught_run(*wide), feature_dim=HashedText.feature_dim, device=CPU)
    for network in (state.G, state.G_ema):  # as after a paired loss: z is hardly heard
        network.mapping.layers[0].weight.data[:, : state.cfg.generator.z_dim] *= 0.1
    state.nimg = nimg
    return state


def never() -> bool:
    return False


def test_lessons_are_of_the_captions_of_each_picture(dataset: CaptionedImages) -> None:
    lessons = read_lessons(dataset)
    assert len(lessons.style) == len(THINGS) * len(STYLES)
    for named, plain, style in zip(lessons.named, lessons.plain, lessons.style.tolist(), strict=True):
        template = STYLES[list(STYLE_INDEX)[style]]
        assert {lessons.texts[i] for i in named} == {template.format(lessons.texts[plain[0]])}
    assert {lessons.texts[i].partition(" on ")[2] for i in lessons.background} == {"a red background"}


def test_z_tells_the_style_and_captions_with_one_stay(
    dataset: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 1000)
    monkeypatch.setattr(module, "WARM_UP", 20)
    state, features = state_at(16), CaptionFeatures(HashedText())
    before = {name: tensor.clone() for name, tensor in state.G.state_dict().items()}
    z = torch.randn(200, state.cfg.generator.z_dim, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def w(caption: str, style: str = "") -> torch.Tensor:
        told = telling(z, torch.full((len(z),), STYLE_INDEX[style])) if style else z
        t = state.G.text(features([caption])).t_global
        return state.G.mapping(told, t.expand(len(z), -1))

    def read_as(thing: str, style: str) -> float:
        """Share of seeds that tell a style of which the caption that names it is the nearest."""
        ours = w(thing, style)
        distances = torch.stack([(ours - old[thing, name]).square().mean(dim=1) for name in STYLES])
        return float((distances.argmin(dim=0) == list(STYLES).index(style)).double().mean())

    old = {(thing, name): w(text.format(thing)) for thing in THINGS for name, text in STYLES.items()}
    guessed = [read_as(thing, style) for thing in THINGS for style in STYLES]
    distill_mapping(state, dataset, features, never)
    assert state.taught
    heard = [read_as(thing, style) for thing in THINGS for style in STYLES]
    assert sum(guessed) / len(guessed) < 0.5
    assert sum(heard) / len(heard) > 0.8
    named = [(w(STYLES[name].format(thing)) - there).square().mean() for (thing, name), there in old.items()]
    apart = (old["an apple", "flat"] - old["a fox", "doodle"]).square().mean()
    assert sum(named) / len(named) < 0.1 * apart
    changed = {name for name, tensor in state.G.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("mapping.layers.")}
    for name, tensor in state.G_ema.state_dict().items():
        assert torch.equal(tensor, state.G.state_dict()[name]), name


def test_it_is_taught_when_it_is_due_and_once(dataset: CaptionedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    features = CaptionFeatures(HashedText())
    state = state_at(8)
    distill_mapping(state, dataset, features, never)
    assert not state.taught, "it isn't due"
    state = state_at(16)
    before = state.G.mapping.state_dict()["layers.0.weight"].clone()
    distill_mapping(state, dataset, features, lambda: True)
    assert not state.taught
    assert torch.equal(state.G.mapping.state_dict()["layers.0.weight"], before), "the run was asked to stop"
    distill_mapping(state, dataset, features, never)
    after = state.G.mapping.state_dict()["layers.0.weight"].clone()
    assert not torch.equal(after, before)
    distill_mapping(state, dataset, features, never)
    assert torch.equal(state.G.mapping.state_dict()["layers.0.weight"], after)


def test_a_run_teaches_m_and_holds_it_also_after_a_restart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 5)

    def run(name: str, kimg: float) -> dict[str, torch.Tensor]:
        train(taught_run(f"data.path={folder}", f"train.total_kimg={kimg}"), tmp_path / name, device=CPU)
        state = checkpoint.latest_state(tmp_path / name)
        assert state is not None
        return state.tensors["G"]

    first = run("parts", 0.016)
    then = run("parts", 0.024)
    last = run("parts", 0.032)
    mapping = [name for name in first if name.startswith("mapping.layers.")]
    assert all(not torch.equal(first[name], then[name]) for name in mapping)
    assert all(torch.equal(then[name], last[name]) for name in mapping)
    drawn = next(name for name in then if name.startswith("synthesis."))
    assert not torch.equal(then[drawn], last[drawn])
    whole = run("whole", 0.032)
    assert all(torch.equal(whole[name], last[name]) for name in whole)


def test_sets_and_settings_without_styles_are_told(dataset: CaptionedImages, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dot"}')
    with pytest.raises(DataError, match=r"no captions with and without a style .* set it to 0"):
        read_lessons(open_dataset(tmp_path))
    for preset in ("tiny", "tiny-up"):
        with pytest.raises(ConfigError, match=r"distill_mapping_kimg needs data\.style_by_seed"):
            config.load(preset, ["train.distill_mapping_kimg=1"])
