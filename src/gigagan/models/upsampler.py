"""The upsampler (paper 8): a small picture, prompt and latent to a pyramid of larger pictures.

An asymmetric U-Net: three stages of plain convolutions to an eighth of the side, then 3 + k stages of the base
generator's kind up to 2^k times the side; maps of equal side are joined. Everything above the input's side is
convolutional, and everything below reaches only so far, so that a picture of any size can be drawn in parts.
Axes: B batch, Z latent, S style, L style layers, C channels, T text tokens, D text width, H and W of the small picture.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gigagan.config import UpsamplerConfig
from gigagan.config.networks import UPSAMPLER_DOWNS
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import attention_stack
from gigagan.models.discriminator import ResidualBlock
from gigagan.models.frozen import TextFeatures
from gigagan.models.generator import ConvBlock, TextToStyle
from gigagan.models.layers import EqualConv, upsample
from gigagan.models.text import TextCondition

INPUT_CHANNELS = 4  # red, green, blue, and how much noise is in them
STRIDE = 1 << UPSAMPLER_DOWNS
"""The small picture's sides are multiples of this."""
FIRST_RGB = 0.1
ENCODER_GAIN = math.sqrt(0.5)  # StyleGAN2's residual blocks


def with_level(low: Float[Tensor, "B 3 H W"], level: Float[Tensor, " B"]) -> Float[Tensor, "B 4 H W"]:
    """What the network is given: a small picture, and the standard deviation of the noise in it."""
    # Unstated: how the network learns the level of the noise; a fourth channel of its input, so that it may be another
    # one in each picture and a network baked for one style still takes any.
    return torch.cat([low, level[:, None, None, None].expand(-1, 1, *low.shape[2:]).to(low)], dim=1)


class EncoderLevel(nn.Module):
    """One side on the way down: plain residual blocks, the last of them to half the side."""

    # Unstated: whether the encoder is modulated; it isn't: plain residual blocks with a strided convolution.

    def __init__(self, cfg: UpsamplerConfig, resolution: int, num_blocks: int) -> None:
        super().__init__()
        channels = cfg.channels(resolution)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, channels, gain=ENCODER_GAIN, down=False) for _ in range(num_blocks - 1)
        )
        self.down = ResidualBlock(channels, cfg.channels(resolution // 2), gain=ENCODER_GAIN, down=True)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C2 H2 W2"]]:
        """The map that the decoder's level of this side is given, and the one of the next side."""
        for block in self.blocks:
            x = block(x)
        return x, self.down(x)


class DecoderLevel(nn.Module):
    """One side on the way up: convolution to this side, the encoder's map of it, convolutions, attention, toRGB."""

    def __init__(self, cfg: UpsamplerConfig, resolution: int) -> None:
        super().__init__()
        level = cfg.resolutions.index(resolution)
        channels = cfg.channels(resolution)
        # Unstated: how the residual gain enters; weights g and 1 of the two paths over sqrt(1 + g^2), which keeps the
        # variance through the many blocks of the paper's upsamplers, where the base generator's reading loses it.
        norm = math.sqrt(1 + cfg.residual_gain**2)
        block = partial(
            ConvBlock,
            style_dim=cfg.w_dim,
            num_filters=cfg.num_filters[level],
            residual=True,
            gain=cfg.residual_gain / norm,
            skip_gain=1 / norm,
        )
        first = level == 0
        blocks = [] if first else [block(cfg.channels(resolution // 2), channels, up=True)]
        blocks += [block(channels, channels, up=False) for _ in range(cfg.blocks[level] - len(blocks))]
        self.blocks = nn.ModuleList(blocks)
        # Unstated: how maps of equal side are joined; the encoder's through a 1x1 convolution, added.
        joined = not first and resolution <= cfg.input_resolution
        self.join = EqualConv(channels, channels, kernel=1, out_gain=math.sqrt(0.5)) if joined else None
        self.attention = attention_stack(
            cfg.attention,
            resolution,
            channels,
            style_dim=cfg.w_dim,
            text_dim=cfg.text_dim if cfg.attention.cross else 0,
            window=resolution,
        )
        above = resolution > cfg.input_resolution
        self.to_rgb = AdaptiveConv(channels, 3, style_dim=cfg.w_dim, kernel=1, demodulate=False) if above else None
        if self.to_rgb is not None:
            nn.init.normal_(self.to_rgb.bank, std=FIRST_RGB)  # training begins near the enlarged picture

    def forward(
        self,
        x: Float[Tensor, "B I H W"],
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
        encoded: Float[Tensor, "B O H2 W2"] | None = None,
    ) -> Float[Tensor, "B O H2 W2"]:
        for i, block in enumerate(self.blocks):
            x = block(x, ws[:, i])
            if i == 0 and self.join is not None:
                assert encoded is not None
                x = torch.add(self.join(encoded), x, alpha=math.sqrt(0.5))
        for attention in self.attention:
            x = attention(x, ws[:, -1], t_local, text_mask)
        return x


class UpsamplerSynthesis(nn.Module):
    """Styles, words and a small picture to a pyramid; `look` is what stands below its side, `draw` what is above."""

    def __init__(self, cfg: UpsamplerConfig) -> None:
        super().__init__()
        side = cfg.input_resolution
        self.from_rgb = EqualConv(INPUT_CHANNELS, cfg.channels(side), kernel=3, activation=True)
        sides = [side >> i for i in range(UPSAMPLER_DOWNS)]
        self.encoder = nn.ModuleDict(
            {f"{r}x{r}": EncoderLevel(cfg, r, n) for r, n in zip(sides, cfg.encoder_blocks, strict=True)}
        )
        self.levels = nn.ModuleDict({f"{r}x{r}": DecoderLevel(cfg, r) for r in cfg.resolutions})
        self.sides = cfg.resolutions
        self.num_ws = sum(cfg.blocks)
        starts = list(accumulate(cfg.blocks, initial=0))
        self.styles = [slice(*pair) for pair in pairwise(starts)]
        """Which styles each level of the decoder is given."""
        self.deep = deep_levels(cfg)

    def forward(
        self,
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
        low: Float[Tensor, "B 4 H W"],
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        return self.draw(self.look(ws, t_local, text_mask, low, dtype), ws, t_local, text_mask, low[:, :3])

    def look(
        self,
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
        low: Float[Tensor, "B 4 H W"],
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "B C H W"]:
        """The map at the small picture's own side: encoder, attention, and the decoder as far as that."""
        x, skips = self.descend(low, dtype)
        return self.ascend(self.attend(x, ws, t_local, text_mask), skips, ws, t_local, text_mask)

    def descend(
        self, low: Float[Tensor, "B 4 H W"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "B C h w"], list[Tensor]]:
        """The encoder's levels that reach a little way alone: their map, and what the decoder is given of them."""
        x = self.from_rgb(low.to(dtype).contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level in list(self.encoder.values())[: UPSAMPLER_DOWNS + 1 - self.deep]:
            skip, x = level(x)
            skips.append(skip)
        return x, skips

    def attend(
        self,
        x: Float[Tensor, "B C h w"],
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
    ) -> Float[Tensor, "B C2 h w"]:
        """All that reaches far, on small maps: the rest of the encoder, and the decoder's levels with attention."""
        skips: list[Tensor] = []
        for level in list(self.encoder.values())[UPSAMPLER_DOWNS + 1 - self.deep :]:
            skip, x = level(x)
            skips.append(skip)
        return self._up(x, range(self.deep), skips, ws, t_local, text_mask)

    def ascend(
        self,
        x: Float[Tensor, "B C h w"],
        skips: list[Tensor],
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
    ) -> Float[Tensor, "B C2 H W"]:
        """The decoder's levels from there to the small picture's own side, given `descend`'s maps of those sides."""
        return self._up(x, range(self.deep, UPSAMPLER_DOWNS + 1), skips, ws, t_local, text_mask)

    def _up(
        self,
        x: Tensor,
        levels: range,
        skips: list[Tensor],
        ws: Tensor,
        t_local: Tensor,
        text_mask: Tensor,
    ) -> Tensor:
        """Levels of the decoder; each but the smallest is given the encoder's map of its side, the last of `skips`."""
        left = list(skips)
        t_local = t_local.to(x.dtype)
        for i in levels:
            level = self.levels[f"{self.sides[i]}x{self.sides[i]}"]
            x = level(x, ws[:, self.styles[i]], t_local, text_mask, left.pop() if i else None)
        return x

    def draw(
        self,
        x: Float[Tensor, "B C H W"],
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
        low: Float[Tensor, "B 3 H W"],
        levels: int = 0,
    ) -> list[Tensor]:
        """The pictures above that side, full size first; the first `levels` doublings alone where it isn't 0."""
        pyramid: list[Tensor] = []
        # Unstated: where the pictures' sum begins; at the small picture itself, enlarged: what is learned is the rest.
        rgb = low.to(torch.float32)
        above = list(self.levels.values())[UPSAMPLER_DOWNS + 1 :]
        for i, level in enumerate(above[: levels or len(above)], start=UPSAMPLER_DOWNS + 1):
            assert isinstance(level, DecoderLevel)
            assert level.to_rgb is not None
            styles = ws[:, self.styles[i]]
            x = level(x, styles, t_local, text_mask)
            rgb = upsample(rgb) + level.to_rgb(x, styles[:, -1]).to(torch.float32)
            # Unstated: which levels are pictures; those above the small picture's side.
            pyramid.insert(0, rgb)
        return pyramid


class Upsampler(TextToStyle):
    """G of an upsampler: (z, text, small picture) -> pyramid of pictures above it, index 0 = largest."""

    def __init__(self, cfg: UpsamplerConfig, *, feature_dim: int) -> None:
        super().__init__(cfg, feature_dim=feature_dim)
        self.cfg = cfg
        self.synthesis = UpsamplerSynthesis(cfg)

    @property
    def num_ws(self) -> int:
        """Style layers: one a convolution block of the decoder."""
        return self.synthesis.num_ws

    def forward(
        self,
        z: Float[Tensor, "B Z"],
        features: TextFeatures,
        low: Float[Tensor, "B 4 H W"],
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        condition: TextCondition = self.text(features)
        return self.synthesize(self.mapping(z, condition.t_global), condition, low, dtype=dtype)

    def synthesize(
        self,
        w: Float[Tensor, "B S"],
        condition: TextCondition,
        low: Float[Tensor, "B 4 H W"],
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """The pyramid of one style used at every layer; `low` in [-1, 1] as `with_level` gives it."""
        ws = w[:, None].expand(-1, self.num_ws, -1)
        pyramid: list[Tensor] = self.synthesis(ws, condition.t_local, condition.mask, low, dtype=dtype)
        return pyramid


def deep_levels(cfg: UpsamplerConfig) -> int:
    """Levels of the decoder, from the smallest up, that attention reaches: what is below them sees far."""
    return 1 + max((cfg.resolutions.index(side) for side in cfg.attention.resolutions), default=0)


@dataclass(frozen=True)
class Reach:
    """How far each part reaches in the small picture, in its pixels: what is further away changes nothing."""

    descend: int
    attend: int
    ascend: int
    draw: int
    """Of the map it is given."""

    @property
    def look(self) -> int:
        """Of the three parts below the picture's own side together."""
        return self.descend + self.attend + self.ascend


def reach(cfg: UpsamplerConfig) -> Reach:
    """Along the way down and up, and through every window of attention as far as one is wide."""
    # Two convolutions a block, each one pixel of its side; the last one strided.
    encoder = [(2 * blocks + 1) << i for i, blocks in enumerate(cfg.encoder_blocks)]
    decoder = []
    for resolution, blocks in zip(cfg.resolutions, cfg.blocks, strict=True):
        pixel = cfg.input_resolution / resolution
        # A block that doubles the side convolves before that, and interpolates.
        doubled = 3 * pixel if resolution > cfg.resolutions[0] else 0
        decoder.append(2 * blocks * pixel + doubled + cfg.attention.depth_at(resolution) * cfg.input_resolution)
    deep, own = deep_levels(cfg), UPSAMPLER_DOWNS + 1
    return Reach(
        descend=1 + sum(encoder[: own - deep]),
        attend=math.ceil(sum(encoder[own - deep :]) + sum(decoder[:deep])),
        ascend=math.ceil(sum(decoder[deep:own])),
        draw=math.ceil(sum(decoder[own:])),
    )
