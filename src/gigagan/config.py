"""Every knob of a run: one frozen tree, its presets, overrides and messages. Imports no torch.

Precedence: defaults < preset or file < `section.key=value` overrides. Defaults are the paper's values where it
states them (docs/paper.md gives the source of each). `None` never means "choose for me".
"""

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gigagan.errors import ConfigError


def _power_of_two(value: int) -> int:
    if value < 4 or value & (value - 1):
        raise ValueError(f"{value} isn't a power of two of at least 4; use 32, 64 or 128")
    return value


Resolution = Annotated[int, AfterValidator(_power_of_two)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the tree: frozen, and no key goes unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _check_levels(
    resolution: int,
    resolutions: tuple[int, ...],
    attention: "AttentionConfig",
    prefix: str = "",
    **lists: tuple[int, ...],
) -> None:
    for name, values in lists.items():
        name = {"filters": "num_filters"}.get(name, name)
        if len(values) != len(resolutions):
            raise ValueError(
                f"{prefix}{name} has {len(values)} numbers but {resolution} px has the {len(resolutions)} sides "
                f"{', '.join(map(str, resolutions))}; give one each"
            )
    for side in attention.resolutions:
        if side not in resolutions:
            raise ValueError(
                f"{prefix}attention.resolutions names {side}, but the sides are {', '.join(map(str, resolutions))}"
            )


class DataConfig(Section):
    """What the networks are shown."""

    path: str = ""
    """Folder with metadata.jsonl, folder of tar shards, or parquet; empty = the few pictures in the package."""
    split: str = "train"
    """Split to train on, where the data set has splits."""
    features: str = ""
    """Precomputed caption features (`gigagan data encode`); empty = captions are encoded as they come."""
    styleless_prob: float = Field(0.2, ge=0, le=1)
    """Share of drawn captions that name no style, where the data set has both kinds."""
    background_prob: float = Field(0.1, ge=0, le=1)
    """Share of pictures with alpha drawn on a coloured background that the caption names."""
    flip_prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures mirrored; 0 where captions name sides."""
    num_workers: int = Field(0, ge=0)
    """Processes that read and decode; 0 = in the training process."""


class TextConfig(Section):
    """The frozen text encoder."""

    encoder: Literal["minilm", "clip", "hashed"] = "minilm"
    """minilm = all-MiniLM-L6-v2, in the package; clip = a CLIP text tower on disk; hashed = vectors for tests."""
    path: str = ""
    """Directory of the encoder's weights; empty = those in the package (minilm)."""
    max_tokens: int = Field(32, ge=4, le=512)
    """Prompt length in tokens, shorter prompts are padded; 77 for CLIP."""


class AttentionConfig(Section):
    """One attention stack a resolution (paper 3.3)."""

    resolutions: tuple[Resolution, ...] = (8, 16, 32)
    """Sides of the feature maps that get a stack."""
    depths: tuple[Count, ...] = (2, 2, 1)
    """Blocks in the stack, a number for each resolution."""
    head_dim: Count = 64
    """Width of one head."""
    dim_multiplier: Positive = 1.0
    """Inner width over channels."""
    mlp_multiplier: Positive = 4.0
    """Hidden width of the MLP over channels."""
    residual_gain: Positive = 0.3
    """Gain of the attention and MLP branches."""

    @model_validator(mode="after")
    def _same_length(self) -> "AttentionConfig":
        if len(self.resolutions) != len(self.depths):
            raise ValueError(f"{len(self.resolutions)} resolutions but {len(self.depths)} depths; give one depth each")
        return self

    def depth_at(self, resolution: int) -> int:
        """Blocks at this side, 0 where there is no stack."""
        return dict(zip(self.resolutions, self.depths, strict=True)).get(resolution, 0)


class GeneratorConfig(Section):
    """G: (z, text) -> pyramid (paper 3)."""

    resolution: Resolution = 64
    """Side of the picture in pixels."""
    z_dim: Count = 128
    """Width of the input latent."""
    w_dim: Count = 1024
    """Width of the style vector."""
    mapping_layers: Count = 4
    """Depth of the mapping network."""
    text_layers: int = Field(4, ge=0)
    """Depth of the learned text transformer T."""
    text_dim: Count = 768
    """Width of t_local and t_global."""
    text_heads: Count = 8
    """Heads of T."""
    channel_base: Count = 16384
    """Channels at side r = min(channel_base // r, channel_max)."""
    channel_max: Count = 1600
    """Most channels at any side."""
    blocks: tuple[Count, ...] = (3, 3, 3, 2, 2)
    """Residual blocks at sides 4, 8, ... up to the resolution."""
    num_filters: tuple[Count, ...] = (1, 1, 2, 4, 8)
    """Filters in the bank of each adaptive convolution at sides 4, 8, ... up to the resolution."""
    residual_gain: Positive = 0.4
    """Gain of a convolutional residual block."""
    attention: AttentionConfig = AttentionConfig()
    """Self- and cross-attention."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the feature maps, from 4 up."""
        return tuple(4 << i for i in range(self.resolution.bit_length() - 2))

    def channels(self, resolution: int) -> int:
        """Width of the feature maps at this side."""
        return min(self.channel_base // resolution, self.channel_max)

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorConfig":
        _check_levels(self.resolution, self.resolutions, self.attention, blocks=self.blocks, filters=self.num_filters)
        return self


class DiscriminatorConfig(Section):
    """D: (pyramid, text) -> logits for every entry and exit (paper 4). Its resolution is the generator's."""

    text_layers: int = Field(4, ge=0)
    """Depth of D's own learned text transformer."""
    text_dim: Count = 768
    """Width of t_D."""
    text_heads: Count = 8
    """Heads of its text transformer."""
    channel_base: Count = 16384
    """Channels at side r = min(channel_base // r, channel_max)."""
    channel_max: Count = 1536
    """Most channels at any side."""
    blocks: tuple[Count, ...] = (2, 2, 2, 2, 1)
    """Residual blocks at sides 4, 8, ... up to the resolution, the last one of each downsampling."""
    residual_gain: Positive = 0.7071
    """Gain of a convolutional residual block (1/sqrt 2, StyleGAN2)."""
    head_layers: Count = 4
    """Modulated 1x1 convolutions in each psi_j."""
    head_channel_max: Count = 1536
    """Most channels inside psi_j."""
    attention: AttentionConfig = AttentionConfig()
    """Self-attention; a mlp_multiplier as in G."""

    def channels(self, resolution: int) -> int:
        """Width of the feature maps at this side."""
        return min(self.channel_base // resolution, self.channel_max)


class LossConfig(Section):
    """Weights of the losses (paper 5)."""

    level_weights: tuple[NonNegative, ...] = (0.33, 0.17, 0.17, 0.17, 0.17)
    """Weight of each entry level, full resolution first."""
    intermediate_adv_weight: NonNegative = 0.01
    """Weight of the adversarial logits at exits before the last."""
    intermediate_match_weight: NonNegative = 0.05
    """Weight of the matching logits at exits before the last."""
    match_weight_D: NonNegative = 1.0
    """Matching-aware loss in D: real and generated with a caption that isn't theirs are fake (Eq. 8)."""
    match_weight_G: NonNegative = 1.0
    """Matching-aware loss in G."""
    r1_gamma: NonNegative = 0.2048
    """R1 strength: r1_gamma / 2 * E|grad|^2 (StyleGAN's convention)."""
    r1_interval: Count = 16
    """Lazy R1: applied every k steps, times k."""
    r1_share: float = Field(1.0, gt=0, le=1)
    """Share of the batch that R1 looks at."""
    paired_l1_weight: NonNegative = 0.0
    """L1 between generated and real pyramids of one caption; for small data, 0 in the paper."""


class AugmentConfig(Section):
    """Differentiable augmentation, alike on each level and on real and generated; for small data."""

    prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures augmented."""
    shift: float = Field(0.125, ge=0, le=0.5)
    """Largest shift, as a share of the side."""
    zoom: float = Field(0.2, ge=0, lt=1)
    """Largest change of size."""
    brightness: float = Field(0.2, ge=0, le=1)
    """Largest change of brightness, in units of half the range."""


class OptimizerConfig(Section):
    """AdamW (paper 6)."""

    lr: Positive = 0.0025
    """Learning rate."""
    text_lr_multiplier: Positive = 1.0
    """Factor on the rate of the learned text layers."""
    beta1: float = Field(0.0, ge=0, lt=1)
    """Adam's first beta."""
    beta2: float = Field(0.99, gt=0, lt=1)
    """Adam's second beta."""
    weight_decay: NonNegative = 1e-5
    """Decay of every weight but those of attention."""
    attention_weight_decay: NonNegative = 0.01
    """Decay of attention weights."""
    warmup_kimg: NonNegative = 0.0
    """The rate rises linearly over this many thousand images."""


class TrainConfig(Section):
    """The run."""

    seed: int = Field(0, ge=0)
    """Seed of weights, order and noise."""
    total_kimg: Positive = 980_000.0
    """Length in thousands of real images."""
    batch: Count = 512
    """Images an optimizer step over all ranks."""
    batch_gpu: Count = 16
    """Images at once on one device; the rest by gradient accumulation."""
    ema_kimg: Positive = 5000.0
    """Half-life of the generator's running average, in thousands of images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of convolutions and attention; R1, softmax, demodulation and logits stay float32."""
    freeze_D: int = Field(0, ge=0)
    """Discriminator stages kept as they are, from the finest (fine-tuning on few pictures)."""
    kimg_per_tick: Positive = 4.0
    """Period of the status line and stats.jsonl, in thousands of images."""
    max_sec_per_tick: Positive = 60.0
    """A tick comes at the latest after this many seconds."""
    snapshot_ticks: Count = 10
    """A snapshot and a sample grid every so many ticks."""
    checkpoint_ticks: Count = 10
    """A training state every so many ticks."""
    keep_checkpoints: Count = 2
    """Training states kept."""
    grid_prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; empty = captions of the first pictures."""


class RunConfig(Section):
    """All of it."""

    init: str = ""
    """Model directory to start from."""
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    optim_G: OptimizerConfig = OptimizerConfig()
    optim_D: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        G = self.generator
        _check_levels(
            G.resolution,
            G.resolutions,
            self.discriminator.attention,
            "discriminator.",
            blocks=self.discriminator.blocks,
        )
        if len(self.loss.level_weights) != len(G.resolutions):
            raise ValueError(
                f"loss.level_weights has {len(self.loss.level_weights)} numbers but a {G.resolution} px pyramid has "
                f"{len(G.resolutions)} levels; give one each"
            )
        if self.train.batch % self.train.batch_gpu:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be a multiple of train.batch_gpu ({self.train.batch_gpu})"
            )
        if self.train.batch_gpu < 2 and self.loss.match_weight_D + self.loss.match_weight_G > 0:
            raise ValueError("train.batch_gpu is 1, but the matching loss needs another caption; use at least 2")
        if self.train.freeze_D >= len(G.resolutions):
            raise ValueError(
                f"train.freeze_D is {self.train.freeze_D}, but D has {len(G.resolutions)} stages; leave one to train"
            )
        return self


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    folder = resources.files("gigagan") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a preset (by name) or file (by path ending in .yaml), with overrides.

    Raises ConfigError for an unknown preset or key and for a value that is out of range.
    """
    tree = _read_preset(preset)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{override!r} isn't an override; write section.key=value")
        _set(tree, key, _parse_yaml(value, what=override) if value else "")
    return from_dict(tree)


def from_dict(tree: dict[str, Any]) -> RunConfig:
    """A validated tree. Raises ConfigError with one line a fault."""
    _check_keys(tree, RunConfig)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_message(dict(fault)) for fault in error.errors())) from None


def to_yaml(cfg: BaseModel) -> str:
    """The whole tree as YAML, in the order of this file."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, width=120)


def _read_preset(preset: str) -> dict[str, Any]:
    path: Any = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        if preset not in preset_names():
            raise ConfigError(f"{preset}: no such preset{_did_you_mean(preset, preset_names())}")
        path = resources.files("gigagan") / "presets" / f"{preset}.yaml"
    elif not path.is_file():
        raise ConfigError(f"{preset}: no such file; give a preset ({', '.join(preset_names())}) or a .yaml file")
    tree = _parse_yaml(path.read_text(encoding="utf-8"), what=preset) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{preset}: holds a {type(tree).__name__}; expected sections such as `train:`")
    return tree


def _parse_yaml(text: str, *, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what}: not YAML ({' '.join(str(error).split())}); mend or quote it") from None


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a section")
    tree[last] = value


def _check_keys(tree: dict[str, Any], section: type[BaseModel], prefix: str = "") -> None:
    """An unknown key, with the nearest known one. pydantic would find it too, but suggests nothing."""
    for key, value in tree.items():
        field = section.model_fields.get(str(key))
        if field is None:
            raise ConfigError(
                f"{prefix}{key}: no such key{_did_you_mean(str(key), list(section.model_fields), prefix)}"
            )
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key}: is a section; set {prefix}{key}.KEY=VALUE")
            _check_keys(value, kind, f"{prefix}{key}.")


def _did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"


def _message(fault: dict[str, Any]) -> str:
    where = ".".join(map(str, fault["loc"]))
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {reason}" if where else reason
    return f"{where}: {reason} (got {fault['input']!r})"
