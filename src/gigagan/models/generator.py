"""The base generator (paper 3): prompt and latent to a pyramid of pictures.

Axes: B batch, Z latent, S style, L style layers, C channels, T text tokens, D text width, E frozen text width.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gigagan.config import GeneratorConfig, UpsamplerConfig
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import attention_stack
from gigagan.models.frozen import TextFeatures
from gigagan.models.layers import EqualConv, EqualLinear, normalize, upsample
from gigagan.models.text import TextCondition, text_layers

W_AVG_DECAY = 0.995  # StyleGAN2


class MappingNetwork(nn.Module):
    """M: w = MLP(concat(norm(z), norm(t_global))) (paper 2.1)."""

    w_avg: Tensor

    def __init__(self, z_dim: int, text_dim: int, w_dim: int, *, num_layers: int, lr_multiplier: float) -> None:
        super().__init__()
        dims = [z_dim + text_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            EqualLinear(dims[i], dims[i + 1], lr_multiplier=lr_multiplier, activation=True) for i in range(num_layers)
        )
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Float[Tensor, "B Z"], t_global: Float[Tensor, "B D"]) -> Float[Tensor, "B S"]:
        x = torch.cat([normalize(z), normalize(t_global.to(z.dtype))], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def track(self, w: Float[Tensor, "B S"]) -> None:
        """Move w_avg, the mean style that truncation pulls to, towards this batch."""
        self.w_avg.lerp_(w.to(self.w_avg.dtype).mean(dim=0), 1 - W_AVG_DECAY)


class ConvBlock(nn.Module):
    """Two adaptive convolutions f, at twice the side when `up`: skip_gain * skip(x) + gain * f(x).

    Where it isn't `residual`, f(x) alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style_dim: int,
        num_filters: int,
        residual: bool,
        gain: float,
        skip_gain: float,
        up: bool,
    ) -> None:
        super().__init__()
        gain = gain if residual else 1.0
        self.conv0 = AdaptiveConv(
            in_channels, out_channels, style_dim=style_dim, num_filters=num_filters, up=up, activation=True
        )
        self.conv1 = AdaptiveConv(
            out_channels, out_channels, style_dim=style_dim, num_filters=num_filters, activation=True, out_gain=gain
        )
        changed = residual and (up or in_channels != out_channels)
        self.skip = EqualConv(in_channels, out_channels, kernel=1, bias=False, out_gain=skip_gain) if changed else None
        self.residual = residual
        self.up = up
        self.skip_gain = skip_gain

    def forward(self, x: Float[Tensor, "B I H W"], w: Float[Tensor, "B S"]) -> Float[Tensor, "B O H2 W2"]:
        y: Tensor = self.conv1(self.conv0(x, w), w)
        if not self.residual:
            return y
        if self.skip is None:
            return torch.add(y, x, alpha=self.skip_gain)
        x = self.skip(x)  # before the upsampling: the two commute, and here it is a quarter of the work
        return y + (upsample(x) if self.up else x)


class SynthesisLevel(nn.Module):
    """One side of the feature maps: convolution blocks, attention stack, toRGB (Eq. 5)."""

    def __init__(self, cfg: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        level = cfg.resolutions.index(resolution)
        channels = cfg.channels(resolution)
        num_filters = cfg.num_filters[level]
        first = resolution == 4
        # Unstated: how the residual gain enters; (x + f(x)) * gain (paper.md 3.3).
        block = partial(
            ConvBlock,
            style_dim=cfg.w_dim,
            num_filters=num_filters,
            residual=cfg.residual,
            gain=cfg.residual_gain,
            skip_gain=cfg.residual_gain,
        )
        self.entry = (
            AdaptiveConv(channels, channels, style_dim=cfg.w_dim, num_filters=num_filters, activation=True)
            if first
            else block(cfg.channels(resolution // 2), channels, up=True)
        )
        self.blocks = nn.ModuleList(block(channels, channels, up=False) for _ in range(cfg.blocks[level] - 1))
        # Unstated: where attention goes; one stack a side, after its convolution blocks (paper.md 3.1).
        self.attention = attention_stack(
            cfg.attention,
            resolution,
            channels,
            style_dim=cfg.w_dim,
            text_dim=cfg.text_dim if cfg.attention.cross else 0,
        )
        # Unstated: toRGB has one filter and no demodulation.
        self.to_rgb = AdaptiveConv(channels, 3, style_dim=cfg.w_dim, kernel=1, demodulate=False)

    def forward(
        self,
        x: Float[Tensor, "B I H W"],
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B O H2 W2"], Float[Tensor, "B 3 H2 W2"]]:
        x = self.entry(x, ws[:, 0])
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, ws[:, i])
        for attention in self.attention:
            x = attention(x, ws[:, -1], t_local, text_mask)
        return x, self.to_rgb(x, ws[:, -1])


class SynthesisNetwork(nn.Module):
    """Styles and words to a pyramid; one of each a convolution block, the RGB of a level added to the upsampled last.

    The attention and the RGB of a level read the style and the words of its last block.
    """

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, cfg.channels(4), 4, 4))
        # Names carry the resolution, so a state dict reads as the architecture and a larger model finds its levels.
        self.levels = nn.ModuleDict({f"{r}x{r}": SynthesisLevel(cfg, r) for r in cfg.resolutions})
        self.blocks = cfg.blocks
        self.num_ws = sum(cfg.blocks)

    def forward(
        self,
        ws: Float[Tensor, "B L S"],
        t_local: Float[Tensor, "B L T D"],
        text_mask: Bool[Tensor, "B L T"] | Float[Tensor, "B L T"],
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        x = self.input.to(dtype).expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        pyramid: list[Tensor] = []
        start = 0
        for level, num_blocks in zip(self.levels.values(), self.blocks, strict=True):
            end = start + num_blocks
            x, rgb = level(x, ws[:, start:end], t_local[:, end - 1].to(dtype), text_mask[:, end - 1])
            # Unstated: levels accumulate, as StyleGAN2's skip generator; summed in float32.
            rgb = rgb.to(torch.float32)
            pyramid.insert(0, rgb if not pyramid else rgb + upsample(pyramid[0]))
            start = end
        return pyramid


class TextToStyle(nn.Module):
    """What every G begins with: T and M, (z, text) -> words and a style (paper 3)."""

    def __init__(self, cfg: GeneratorConfig | UpsamplerConfig, *, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.text = text_layers(feature_dim, dim=cfg.text_dim, num_layers=cfg.text_layers, num_heads=cfg.text_heads)
        self.mapping = MappingNetwork(
            cfg.z_dim,
            cfg.text_dim,
            cfg.w_dim,
            num_layers=cfg.mapping_layers,
            lr_multiplier=cfg.mapping_lr_multiplier,
        )


class Generator(TextToStyle):
    """G: (z, text) -> pyramid of pictures, index 0 = full resolution, values about [-1, 1]."""

    def __init__(self, cfg: GeneratorConfig, *, feature_dim: int) -> None:
        super().__init__(cfg, feature_dim=feature_dim)
        self.cfg = cfg
        self.synthesis = SynthesisNetwork(cfg)

    @property
    def num_ws(self) -> int:
        """Style layers: one a convolution block."""
        return self.synthesis.num_ws

    def forward(
        self, z: Float[Tensor, "B Z"], features: TextFeatures, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        condition: TextCondition = self.text(features)
        w = self.mapping(z, condition.t_global)
        return self.synthesize(w, condition, dtype=dtype)

    def synthesize(
        self,
        w: Float[Tensor, "B S"] | Float[Tensor, "B L S"],
        condition: TextCondition,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """The pyramid of one prompt used at every layer, and one style or one for each layer."""
        ws = w if w.ndim == 3 else w[:, None].expand(-1, self.num_ws, -1)
        parts = (condition.t_local, condition.mask)
        t_local, mask = (x[:, None].expand(-1, self.num_ws, *x.shape[1:]) for x in parts)
        pyramid: list[Tensor] = self.synthesis(ws, t_local, mask, dtype=dtype)
        return pyramid
