"""The configuration: presets, overrides, their order, and what a mistake is told."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gigagan import config
from gigagan.config import LossConfig, RunConfig, Weights
from gigagan.errors import ConfigError, GigaGANError, MissingExtra


def sections(kind: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(prefix, kind)]
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sections(field.annotation, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("preset", config.preset_names())
def test_every_preset_loads_and_survives_a_round_trip(preset: str) -> None:
    cfg = config.load(preset)
    assert config.from_dict(yaml.safe_load(config.to_yaml(cfg))) == cfg


@pytest.mark.parametrize("preset", config.preset_names())
def test_every_preset_starts_with_its_command(preset: str) -> None:
    path = Path(config.__file__).parents[1] / "presets" / f"{preset}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# gigagan ")
    assert f"train {preset}" in first


def test_the_defaults_are_a_valid_run() -> None:
    assert config.from_dict({}) == RunConfig()


def test_an_override_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("optim_G: {lr: 0.5, beta2: 0.5}\n")
    cfg = config.load(str(file), ["optim_G.lr=0.25"])
    assert (cfg.optim_G.lr, cfg.optim_G.beta2) == (0.25, 0.5)
    assert cfg.optim_D == RunConfig().optim_D


def test_a_weight_may_be_a_schedule() -> None:
    loss = config.load("tiny", ["loss.clip_weight=[[10, 0.2], [30, 1.0]]", "loss.r1_gamma=0.5"]).loss
    values = [loss.at(kimg).clip for kimg in (0, 10, 20, 30, 1000)]
    assert values == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0])
    assert loss.at(20).r1_gamma == 0.5
    assert LossConfig(adv_weight=((5, 0), (5.001, 1))).at(5).adv == 0
    assert set(Weights._fields) == {
        name.removesuffix("_weight").replace("_weight_", "_")
        for name, field in LossConfig.model_fields.items()
        if "points" in str(field.annotation)
    }


def test_points_of_a_schedule_rise() -> None:
    with pytest.raises(ConfigError, match=r"loss.clip_weight has the kimg \[30.0, 10.0\]; .*rising"):
        config.load("tiny", ["loss.clip_weight=[[30, 1], [10, 2]]"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim_G.lr=3e-4", 3e-4),  # PyYAML reads 3e-4 as a string
        ("optim_G.lr=.001", 0.001),
        ("optim_G.lr=1", 1.0),
    ],
)
def test_numbers_as_people_write_them(override: str, value: float) -> None:
    assert config.load("emoji64", [override]).optim_G.lr == value


def test_a_word_that_yaml_reads_as_false_is_refused_where_a_word_is_meant() -> None:
    with pytest.raises(ConfigError, match=r"data\.split: .*string"):
        config.load("emoji64", ["data.split=no"])
    assert config.load("emoji64", ["data.split='no'"]).data.split == "no"


def test_an_empty_value_is_the_empty_word() -> None:
    assert config.load("emoji64", ["data.split="]).data.split == ""


def test_a_list_is_given_as_yaml() -> None:
    cfg = config.load("emoji64", ["train.grid_prompts=[a red apple, 'a: b']"])
    assert cfg.train.grid_prompts == ("a red apple", "a: b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.resolutoin=64", "generator.resolutoin: no such key; did you mean generator.resolution?"),
        ("trian.batch=64", "trian: no such key; did you mean train?"),
        ("optim_G.lr=-1", "optim_G.lr: Input should be greater than 0 (got -1)"),
        ("optim_G.lr=fast", "optim_G.lr: Input should be a valid number"),
        ("optim_G.lr=[[0, -1]]", "optim_G.lr.0.1: Input should be greater than or equal to 0 (got -1)"),
        ("optim_G.lr=[[9, 1], [2, 1]]", "optim_G: lr has the kimg [9.0, 2.0]; give [kimg, value] points with rising"),
        ("loss.clip_weight=much", "loss.clip_weight: Input should be a valid number"),
        ("generator.resolution=96", "generator.resolution: 96 isn't a power of two of at least 4; use 32, 64 or 128"),
        ("generator.blocks=[1, 1]", "generator: blocks has 2 numbers but 64 px has the 5 sides 4, 8, 16, 32, 64"),
        ("discriminator.blocks=[1]", "discriminator.blocks has 1 numbers"),
        ("generator.attention.resolutions=[8, 16, 128]", "names 128, but the sides are 4, 8, 16, 32, 64"),
        ("generator.attention.depths=[1]", "3 resolutions but 1 depths; give one depth each"),
        ("loss.level_weights=[1, 1]", "loss.level_weights has 2 numbers but a 64 px pyramid has 5 levels"),
        ("loss.level_weights=[0, 0, 0, 0, 0]", "level_weights are all 0"),
        ("generator.channel_base=32", "channel_base is 32, less than a channel at 64 px; give at least 64"),
        ("discriminator.channel_base=32", "discriminator.channel_base is 32, less than a channel at 64 px"),
        ("train.batch_gpu=7", "train.batch (64) must be a multiple of train.batch_gpu (7)"),
        ("train.batch_gpu=1", "the matching loss needs another caption; use at least 2"),
        ("train.freeze_D=5", "train.freeze_D is 5, but D has 5 stages; leave one to train"),
        ("train.dtype=float16", "train.dtype: Input should be 'float32' or 'bfloat16' (got 'float16')"),
        ("train=3", "train: is a section; set train.KEY=VALUE"),
        ("train.batch.size=3", "train.batch"),
        ("train.batch", "'train.batch' isn't an override; write section.key=value"),
        ("=3", "'=3' isn't an override; write section.key=value"),
        ("train.batch=[1", "train.batch=[1: not YAML"),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_to_do(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("train: {batch: 64, batch_gpu: 64}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(str(file), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("emoji46", "emoji46: no such preset; did you mean emoji64?"),
        ("", ": no such preset; known: "),
        ("missing.yaml", "missing.yaml: no such file; give a preset ("),
    ],
)
def test_an_unknown_preset_names_the_known_ones(preset: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(preset)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- 1\n- 2\n", "holds a list; expected sections"), ("3", "holds a int")],
)
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_told_of_styles_is_for_base_models() -> None:
    for override in ("data.restyled_prob=0.5", "data.style_by_seed=true"):
        with pytest.raises(ConfigError, match=r"loss\.style_weight are for base models, but this is"):
            config.load("tiny-up", [override])
    with pytest.raises(ConfigError, match=r"loss\.style_weight reads styles by heads on lite0"):
        config.load("tiny", ["loss.style_weight=1", "vision.network=clip"])
    with pytest.raises(ConfigError, match=r"nine numbers in z, but generator\.z_dim is 8"):
        config.load("tiny", ["data.style_by_seed=true", "generator.z_dim=8"])
    small = ["generator.resolution=4", "generator.blocks=[1]", "generator.num_filters=[1]"]
    no_attention = ["generator.attention.resolutions=[]", "generator.attention.depths=[]"]
    with pytest.raises(ConfigError, match=r"data\.restyled_prob needs layers finer than 4 px"):
        config.load("tiny", [*small, *no_attention, "data.restyled_prob=0.5"])


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.touch()
    assert config.load(str(file)) == RunConfig()


def refusal(*overrides: str) -> str:
    """What the user is told; any other kind of error is a bug and comes through."""
    try:
        config.load("emoji64", overrides)
    except ConfigError as error:
        return str(error)
    return ""


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_any_text_as_an_override_is_taken_or_refused_in_one_line(text: str) -> None:
    assert "\n" not in refusal(text)


@settings(max_examples=40)
@given(st.sampled_from(["data.path", "optim_G.lr", "generator.blocks", "train.batch", "data"]), st.text(max_size=20))
def test_any_value_of_a_known_key_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    assert "\n" not in refusal(f"{key}={value}")


def test_nobody_edits_the_tree_at_run_time() -> None:
    cfg = config.load("emoji64")
    with pytest.raises(ValidationError, match="frozen"):
        cfg.train.batch = 3  # type: ignore[misc]


@pytest.mark.parametrize(("prefix", "section"), sections())
def test_every_key_says_what_it_means(prefix: str, section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        meaning = field.description or (field.annotation.__doc__ if nested else None)
        assert meaning, f"{prefix}{name} has no docstring"


def test_the_defaults_are_the_papers_numbers() -> None:
    cfg = RunConfig()
    G, D, loss = cfg.generator, cfg.discriminator, cfg.loss
    assert isinstance(G, config.GeneratorConfig)
    assert (G.z_dim, G.w_dim, G.mapping_layers, G.mapping_lr_multiplier) == (128, 1024, 4, 0.01)
    assert (G.residual_gain, G.attention.residual_gain, G.attention.mlp_multiplier) == (0.4, 0.3, 4.0)
    assert (D.minibatch_std, D.head_layers, D.multi_scale) == (0, 4, True)
    assert loss.level_weights == (0.33, 0.17, 0.17, 0.17, 0.17)
    assert (loss.intermediate_adv_weight, loss.intermediate_match_weight) == (0.01, 0.05)
    assert (loss.match_weight_D, loss.match_weight_G, loss.r1_gamma, loss.r1_interval) == (1.0, 1.0, 0.2048, 16)
    for optimizer in (cfg.optim_G, cfg.optim_D):
        assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (0.0025, 0.0, 0.99)
        assert (optimizer.weight_decay, optimizer.attention_weight_decay) == (1e-5, 0.01)
    assert (cfg.train.batch, cfg.train.total_kimg, cfg.train.dtype, cfg.augment.prob) == (512, 980_000, "float32", 0)
    assert 0.5 ** (cfg.train.batch / (1000 * cfg.train.ema_kimg)) == pytest.approx(0.9999, abs=5e-5)


def test_derived_numbers() -> None:
    G = RunConfig().generator.model_copy(update={"channel_base": 2048, "channel_max": 256})
    assert G.resolutions == (4, 8, 16, 32, 64)
    assert [G.channels(side) for side in G.resolutions] == [256, 256, 128, 64, 32]
    assert [G.attention.depth_at(side) for side in G.resolutions] == [0, 2, 2, 1, 0]


def test_a_missing_extra_says_the_line_to_type() -> None:
    error = MissingExtra("grain", "train")
    assert isinstance(error, GigaGANError)
    assert str(error) == "grain isn't installed; run: pip install 'open-gigagan[train]'"
