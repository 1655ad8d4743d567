"""Knobs of a run: data, text, augmentation, optimizers, length; and the whole tree.

Defaults are the paper's values where it states them (docs/paper.md gives the source of each).
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from gigagan.config.loss import LossConfig
from gigagan.config.networks import (
    UPSAMPLER_DOWNS,
    Count,
    DiscriminatorConfig,
    GeneratorConfig,
    NonNegative,
    Positive,
    Section,
    UpsamplerConfig,
    VisionConfig,
    check_levels,
    check_width,
)
from gigagan.config.schedule import Rate, check_points

NETWORKS: dict[str, type[GeneratorConfig] | type[UpsamplerConfig]] = {
    "base": GeneratorConfig,
    "upsampler": UpsamplerConfig,
}
"""What the generator's section may be, by its `kind`."""


def kind_of(section: Any) -> str:
    """Of a generator's section, as a tree or as a model; without one it is the base generator's."""
    kind = section.get("kind", "base") if isinstance(section, dict) else getattr(section, "kind", "base")
    return str(kind)


AnyGenerator = Annotated[
    Annotated[GeneratorConfig, Tag("base")] | Annotated[UpsamplerConfig, Tag("upsampler")], Discriminator(kind_of)
]


class FilterConfig(Section):
    """Which samples of an indexed set (`gigagan data index`) are shown."""

    min_side: int = Field(0, ge=0)
    """Shorter side of the stored picture in pixels, at least."""
    min_characters: int = Field(0, ge=0)
    """Length of the first caption, at least."""
    max_characters: int = Field(0, ge=0)
    """Length of the first caption, at most; 0 = any."""
    min_scores: tuple[tuple[str, float], ...] = ()
    """[name, least value] of numbers stored with the samples: [[similarity, 0.28], [aesthetic, 5]]."""


class DataConfig(Section):
    """What the networks are shown."""

    path: str = ""
    """Folder with metadata.jsonl, folder of tar shards, or parquet; empty = the few pictures in the package."""
    split: str = "train"
    """Split to train on, where the data set has splits."""
    mix: tuple[tuple[str, Positive], ...] = ()
    """Several sets in place of `path`, with weights: [[first.index, 3], [second, 1]]."""
    keep: FilterConfig = FilterConfig()
    """Filters; of every set of a mix."""
    features: str = ""
    """Precomputed caption features (`gigagan data encode`); empty = captions are encoded as they come."""
    styleless_prob: float = Field(0.2, ge=0, le=1)
    """Share of drawn captions that name no style, where the data set has both kinds."""
    restyled_prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures whose words, for G's attention and its 4 px layers, say another style than the caption,
    which w of finer layers keeps: these then tell the style, and edits change it. For the emoji set."""
    style_by_seed: bool = False
    """Whether z says the style where a caption doesn't: seeds of such a prompt then differ. For the emoji set."""
    background_prob: float = Field(0.1, ge=0, le=1)
    """Share of pictures with alpha drawn on a coloured background that the caption names."""
    flip_prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures mirrored; 0 where captions name sides."""
    crop: int = Field(0, ge=0)
    """Side of the square cut out of each picture at a random place, from pictures in their own size up to the
    resolution; 0 = the whole picture. For upsamplers."""
    num_workers: int = Field(0, ge=0)
    """Processes that read and decode; 0 = in the training process."""

    @model_validator(mode="after")
    def _one_or_several(self) -> "DataConfig":
        if self.path and self.mix:
            raise ValueError("data.path and data.mix are both set; give one set or several")
        return self


class TextConfig(Section):
    """The frozen text encoder."""

    encoder: Literal["minilm", "clip", "hashed", "classes", "none"] = "minilm"
    """minilm = all-MiniLM-L6-v2, in the package; clip = a CLIP text tower on disk; hashed = vectors for tests;
    classes = the class of a picture instead of a text; none = unconditional."""
    num_classes: int = Field(0, ge=0)
    """Classes of the data, for encoder=classes."""
    path: str = ""
    """Directory of the encoder's weights; empty = those in the package (minilm)."""
    max_tokens: int = Field(32, ge=4, le=512)
    """Prompt length in tokens, shorter prompts are padded; 77 for CLIP."""

    @model_validator(mode="after")
    def _some_classes(self) -> "TextConfig":
        if (self.encoder == "classes") != (self.num_classes > 1):
            raise ValueError(
                f"text.encoder is {self.encoder} and text.num_classes {self.num_classes}; "
                "encoder=classes needs at least 2, the others 0"
            )
        return self


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


class DegradeConfig(Section):
    """How a picture becomes the small one that an upsampler is given."""

    filters: tuple[Literal["area", "bilinear", "bicubic"], ...] = Field(("bicubic",), min_length=1)
    """Antialiased filters that reduce it; each picture draws one."""
    prob: float = Field(0.0, ge=0, le=1)
    """Share of pictures that also lose what photographs lose: blur, sensor noise, JPEG."""
    blur: NonNegative = 1.0
    """Largest standard deviation of the blur, in pixels of the small picture."""
    noise: float = Field(0.06, ge=0, le=1)
    """Largest standard deviation of the sensor's noise, in units of half the range; the network isn't told of it."""
    jpeg_quality: int = Field(40, ge=5, le=95)
    """Lowest quality of JPEG; the highest is 95."""


class OptimizerConfig(Section):
    """AdamW (paper 6)."""

    lr: Rate = 0.0025
    """Learning rate; may be a schedule as the weights of the losses: a warm-up, or stages."""
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

    @model_validator(mode="after")
    def _ascending(self) -> "OptimizerConfig":
        check_points("lr", self.lr)
        return self


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
    compile: bool = False
    """Compile G's synthesis and D's trunk by torch.compile (minutes at the start, then faster steps)."""
    shard_G: bool = False
    """Spread the weights of G and its average over the ranks (FSDP2), for a G that outgrows a device."""
    recompute: bool = False
    """Compute activations of G's levels and D's stages again in the backward pass; less memory, a third more work."""
    distill_mapping_kimg: NonNegative = 0.0
    """When M is taught by itself that z tells the style where a caption names none (minutes), and held from then on;
    0 = never. Needs data.style_by_seed."""
    freeze_D: int = Field(0, ge=0)
    """Discriminator stages kept as they are, from the finest (fine-tuning on few pictures)."""
    max_sec_per_step: Positive = 1800.0
    """A step that takes longer, with what follows it, hangs: stacks are printed and the process ends."""
    kimg_per_tick: Positive = 4.0
    """Period of the status line and stats.jsonl, in thousands of images."""
    max_sec_per_tick: Positive = 60.0
    """A tick comes at the latest after this many seconds."""
    snapshot_ticks: Count = 10
    """A snapshot and a sample grid every so many ticks."""
    checkpoint_ticks: Count = 10
    """A training state every so many ticks."""
    keep_checkpoints: Count = 2
    """Newest training states kept."""
    milestone_kimg: NonNegative = 0.0
    """Besides these the first state of every so many thousand images is kept for good; 0 = none."""
    best_by: str = ""
    """Number of stats.jsonl by which the best snapshot is kept as best-model: the lowest, of -NAME the highest."""
    grid_prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; empty = captions of the first pictures."""


class RunConfig(Section):
    """All of it."""

    init: str = ""
    """Model directory to start from, or the name of one in the package (emoji)."""
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    generator: AnyGenerator = GeneratorConfig()
    """G, of the base model (kind=base) or of an upsampler."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    vision: VisionConfig = VisionConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    degrade: DegradeConfig = DegradeConfig()
    optim_G: OptimizerConfig = OptimizerConfig()
    optim_D: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    @property
    def shown_side(self) -> int:
        """Side of the pictures in a batch."""
        return self.data.crop or self.generator.resolution

    @property
    def judged_side(self) -> int:
        """Side of what D is shown of them: its resolution."""
        return self.discriminator.window or self.shown_side

    @property
    def judged_levels(self) -> int:
        """Levels of the pyramid that D is shown."""
        return self.generator.levels if self.discriminator.multi_scale else 1

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        G, levels = self.generator, self.judged_levels
        self._check_kind()
        judged = self.judged_side
        check_width(self.discriminator.channel_base, judged, "discriminator.")
        check_levels(
            judged,
            tuple(4 << i for i in range(judged.bit_length() - 2)),
            self.discriminator.attention,
            "discriminator.",
            blocks=self.discriminator.blocks,
        )
        if len(self.loss.level_weights) != levels:
            seen = f"a {G.resolution} px pyramid has {levels} levels" if levels > 1 else "D sees one level"
            raise ValueError(f"loss.level_weights has {len(self.loss.level_weights)} numbers but {seen}; give one each")
        if (group := self.discriminator.minibatch_std) and self.train.batch_gpu % group:
            raise ValueError(f"train.batch_gpu ({self.train.batch_gpu}) must be a multiple of minibatch_std ({group})")
        self._check_condition()
        if self.train.batch % self.train.batch_gpu:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be a multiple of train.batch_gpu ({self.train.batch_gpu})"
            )
        if self.train.batch_gpu < 2 and (self.loss.match_weight_D or self.loss.match_weight_G):
            raise ValueError("train.batch_gpu is 1, but the matching loss needs another caption; use at least 2")
        loss = self.loss
        others = loss.vision_weight, loss.clip_weight, loss.perceptual_weight, loss.style_weight
        if not (loss.adv_weight or loss.paired_l1_weight or any(others)):
            raise ValueError("loss.adv_weight is 0 and so is every other loss of G; give one of them a weight")
        if self.train.freeze_D >= len(self.discriminator.blocks):  # stages, whatever enters them
            raise ValueError(
                f"train.freeze_D is {self.train.freeze_D}, but D has {len(self.discriminator.blocks)} stages; "
                "leave one to train"
            )
        return self

    def _check_kind(self) -> None:
        """That the data suits the kind of network, and what is cut out of pictures can be."""
        G, crop, window = self.generator, self.data.crop, self.discriminator.window
        if self.train.distill_mapping_kimg and (not self.data.style_by_seed or self.train.shard_G):
            raise ValueError("train.distill_mapping_kimg needs data.style_by_seed, and a G in one piece (shard_G)")
        if isinstance(G, GeneratorConfig):
            if crop or window or self.degrade != DegradeConfig():
                raise ValueError(
                    "data.crop, discriminator.window and degrade are for upsamplers (generator.kind=upsampler); "
                    "leave them out"
                )
            if self.data.restyled_prob and G.resolution < 8:
                raise ValueError("data.restyled_prob needs layers finer than 4 px, but there are none; set it to 0")
            if self.loss.style_weight and self.vision.network == "clip":
                raise ValueError("loss.style_weight reads styles by heads on lite0; set vision.network=lite0")
            if self.data.style_by_seed and G.z_dim < 9:
                raise ValueError(f"data.style_by_seed needs nine numbers in z, but generator.z_dim is {G.z_dim}")
            return
        if self.data.restyled_prob or self.data.style_by_seed or self.loss.style_weight:
            keys = "data.restyled_prob, style_by_seed and loss.style_weight"
            raise ValueError(f"{keys} are for base models, but this is an upsampler; leave them out")
        if crop and (crop & (crop - 1) or not G.factor * 2**UPSAMPLER_DOWNS <= crop <= G.resolution):
            raise ValueError(
                f"data.crop is {crop}; expected a power of two from {G.factor * 2**UPSAMPLER_DOWNS} to {G.resolution}"
            )
        if window and (window & (window - 1) or not 8 * G.factor <= window <= self.shown_side):
            raise ValueError(
                f"discriminator.window is {window}; expected a power of two from {8 * G.factor} to {self.shown_side}"
            )

    def _check_condition(self) -> None:
        """That networks and losses are told of what the text encoder gives."""
        text, loss = self.text, self.loss
        blind = self.generator.text_dim == 0
        if blind != (text.encoder == "none") or blind != (self.discriminator.text_dim == 0):
            raise ValueError(
                f"text.encoder is {text.encoder}, generator.text_dim {self.generator.text_dim} and "
                f"discriminator.text_dim {self.discriminator.text_dim}; unconditional is none, 0 and 0"
            )
        if text.encoder in ("none", "classes") and self.generator.attention.cross and self.generator.attention.depths:
            raise ValueError(
                f"text.encoder is {text.encoder}, which gives no words; set generator.attention.cross=false"
            )
        if blind and (loss.match_weight_D or loss.match_weight_G or loss.clip_weight or loss.vision_weight):
            raise ValueError(
                "text.encoder is none, but the matching, CLIP and vision-aided losses need captions; set "
                "loss.match_weight_D, match_weight_G, clip_weight and vision_weight to 0"
            )
