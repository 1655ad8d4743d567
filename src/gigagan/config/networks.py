"""Knobs of the networks: generator, discriminator, attention. Defaults are the paper's values where it states them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


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


def check_levels(
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


def check_width(channel_base: int, resolution: int, prefix: str = "") -> None:
    if channel_base < resolution:
        raise ValueError(
            f"{prefix}channel_base is {channel_base}, less than a channel at {resolution} px; "
            f"give at least {resolution}"
        )


def check_heads(text_dim: int, text_heads: int, text_layers: int, prefix: str = "") -> None:
    if text_layers and text_dim % text_heads:
        raise ValueError(
            f"{prefix}text_dim is {text_dim} and {prefix}text_heads {text_heads}; heads must divide the width"
        )


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
    cross: bool = True
    """Whether G also attends to the words."""

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

    kind: Literal["base"] = "base"
    """base = from prompt and latent alone; upsampler = from a small picture as well (another section of keys)."""
    resolution: Resolution = 64
    """Side of the picture in pixels."""
    z_dim: Count = 128
    """Width of the input latent."""
    w_dim: Count = 1024
    """Width of the style vector."""
    mapping_layers: Count = 4
    """Depth of the mapping network."""
    mapping_lr_multiplier: Positive = 0.01
    """Factor on the learning rate of the mapping network (StyleGAN2's)."""
    text_layers: int = Field(4, ge=0)
    """Depth of the learned text transformer T."""
    text_dim: int = Field(1024, ge=0)
    """Width of t_local and t_global; 0 = unconditional."""
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
    residual: bool = True
    """Whether a path leads around the two convolutions of a block; false = StyleGAN2's chain."""
    residual_gain: Positive = 0.4
    """Gain of a convolutional residual block."""
    attention: AttentionConfig = AttentionConfig()
    """Self- and cross-attention."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the feature maps, from 4 up."""
        return tuple(4 << i for i in range(self.resolution.bit_length() - 2))

    @property
    def levels(self) -> int:
        """Pictures in the pyramid, one at each side."""
        return len(self.resolutions)

    def channels(self, resolution: int) -> int:
        """Width of the feature maps at this side."""
        return min(self.channel_base // resolution, self.channel_max)

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorConfig":
        check_width(self.channel_base, self.resolution)
        check_levels(self.resolution, self.resolutions, self.attention, blocks=self.blocks, filters=self.num_filters)
        check_heads(self.text_dim, self.text_heads, self.text_layers)
        return self


UPSAMPLER_DOWNS = 3
"""Stages of the encoder, each to half the side; 3 + k lead up again for a factor of 2^k (paper 8)."""


class UpsamplerConfig(Section):
    """G of an upsampler: (z, text, small picture) -> pyramid of larger ones, an asymmetric U-Net (paper 8).

    Sides are those of the whole picture in training; the network itself takes any.
    """

    kind: Literal["upsampler"] = "upsampler"
    """As in the generator's section."""
    resolution: Resolution = 512
    """Side of the largest picture that comes out."""
    input_resolution: Resolution = 64
    """Side of the picture that goes in."""
    z_dim: Count = 128
    """Width of the input latent."""
    w_dim: Count = 512
    """Width of the style vector."""
    mapping_layers: Count = 4
    """Depth of the mapping network."""
    mapping_lr_multiplier: Positive = 0.01
    """Factor on the learning rate of the mapping network (StyleGAN2's)."""
    text_layers: int = Field(2, ge=0)
    """Depth of the learned text transformer T."""
    text_dim: int = Field(768, ge=0)
    """Width of t_local and t_global; 0 = unconditional."""
    text_heads: Count = 8
    """Heads of T."""
    channel_base: Count = 32768
    """Channels at side r = min(channel_base // r, channel_max)."""
    channel_max: Count = 512
    """Most channels at any side."""
    encoder_blocks: tuple[Count, ...] = (1, 1, 1)
    """Residual blocks at the input's side, half and a quarter of it, the last one of each downsampling."""
    blocks: tuple[Count, ...] = (1, 1, 1, 1, 1, 1, 1)
    """Residual blocks at an eighth of the input's side and at each side above it, up to the resolution."""
    num_filters: tuple[Count, ...] = (1, 1, 1, 1, 1, 1, 1)
    """Filters in the bank of each adaptive convolution at those sides."""
    residual_gain: Positive = 0.4
    """Weight of the convolutions in a residual block."""
    attention: AttentionConfig = AttentionConfig(resolutions=(8, 16, 32, 64), depths=(2, 2, 2, 1), residual_gain=0.5)
    """Self- and cross-attention, at sides up to the input's; above the training size in windows of it."""
    noise_max: float = Field(0.2, ge=0, le=1)
    """Largest standard deviation of the noise that training adds to the input, in units of half the range."""

    @property
    def factor(self) -> int:
        """Sides of the picture that comes out over those of the one that goes in."""
        return self.resolution // self.input_resolution

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the decoder's feature maps, from the smallest up."""
        smallest = self.input_resolution >> UPSAMPLER_DOWNS
        return tuple(smallest << i for i in range(self.levels + UPSAMPLER_DOWNS + 1))

    @property
    def levels(self) -> int:
        """Pictures in the pyramid: those larger than the input."""
        return self.factor.bit_length() - 1

    def channels(self, resolution: int) -> int:
        """Width of the feature maps at this side."""
        return min(self.channel_base // resolution, self.channel_max)

    @model_validator(mode="after")
    def _fits(self) -> "UpsamplerConfig":
        check_heads(self.text_dim, self.text_heads, self.text_layers)
        if self.factor < 2 or self.input_resolution < 2 << UPSAMPLER_DOWNS:
            raise ValueError(
                f"an upsampler from {self.input_resolution} to {self.resolution} px; expected at least "
                f"{2 << UPSAMPLER_DOWNS} px in and a larger side out"
            )
        if len(self.encoder_blocks) != UPSAMPLER_DOWNS:
            raise ValueError(f"encoder_blocks has {len(self.encoder_blocks)} numbers; give {UPSAMPLER_DOWNS}")
        check_width(self.channel_base, self.resolution)
        check_levels(self.resolution, self.resolutions, self.attention, blocks=self.blocks, filters=self.num_filters)
        if above := [side for side in self.attention.resolutions if side > self.input_resolution]:
            raise ValueError(f"attention.resolutions names {above[0]}, above the input's {self.input_resolution}")
        return self


class DiscriminatorConfig(Section):
    """D: (pyramid, text) -> logits for every entry and exit (paper 4). Its resolution is that of what it is shown."""

    window: int = Field(0, ge=0)
    """Side of the square of each picture that D is shown, at a random place; 0 = all of it."""

    multi_scale: bool = True
    """Every level of the pyramid enters and is judged at every later exit (MS-I/O); false = the picture at the last."""
    text_layers: int = Field(2, ge=0)
    """Depth of D's own learned text transformer."""
    text_dim: int = Field(1024, ge=0)
    """Width of t_D; 0 = unconditional."""
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
    minibatch_std: int = Field(0, ge=0)
    """Pictures in a group whose spread D sees before its last layer; 0 = none."""
    head: Literal["modulated", "projection"] = "modulated"
    """modulated = text modulates 1x1 convolutions (Eq. 7); projection = onto a direction of the class, at one exit."""
    head_layers: Count = 4
    """Modulated 1x1 convolutions in each psi_j; layers between a class and its direction."""
    head_channel_max: Count = 1536
    """Most channels inside psi_j."""
    attention: AttentionConfig = AttentionConfig()
    """Self-attention; a mlp_multiplier as in G."""

    def channels(self, resolution: int) -> int:
        """Width of the feature maps at this side."""
        return min(self.channel_base // resolution, self.channel_max)

    @model_validator(mode="after")
    def _one_exit(self) -> "DiscriminatorConfig":
        check_heads(self.text_dim, self.text_heads, self.text_layers, "discriminator.")
        if self.head == "projection" and self.multi_scale:
            raise ValueError("discriminator.head=projection judges one exit; set discriminator.multi_scale=false")
        return self


class VisionConfig(Section):
    """The frozen image network that losses look through, and the vision-aided discriminator V on it (paper 5)."""

    network: Literal["lite0", "clip"] = "lite0"
    """lite0 = EfficientNet-Lite0 (`gigagan data weights lite0`); clip = CLIP's image tower on disk (the paper's)."""
    path: str = ""
    """Directory of the CLIP checkpoint; for clip."""
    heads: str = ""
    """Heads that make a contrastive pair of MiniLM and lite0 (`gigagan data heads`); for loss.clip_weight on lite0."""

    text_layers: int = Field(1, ge=0)
    """Depth of V's own learned text transformer."""
    text_dim: Count = 256
    """Width of the text vector that modulates its heads."""
    text_heads: Count = 4
    """Heads of its text transformer."""
    channels: Count = 64
    """Width of the fixed random projections and of the heads."""
    resolution: Count = 128
    """Smaller pictures are enlarged to this side for the frozen network, which sees more then and takes longer."""

    @model_validator(mode="after")
    def _divides(self) -> "VisionConfig":
        check_heads(self.text_dim, self.text_heads, self.text_layers, "vision.")
        return self
