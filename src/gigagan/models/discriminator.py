"""The multi-scale-input, multi-scale-output discriminator (paper 4): pyramid and text to logits D_ij.

The trunk phi has L stages, each self-attention and then a stride-2 convolution; level i of the pyramid enters right
before stage i + 1 through its own fromRGB and is judged at every later exit j = i + 1 ... L. Levels share weights and
never mix: at each stage they lie side by side on the batch axis.
Axes: B batch, C channels, D text width, M pictures at an exit (levels times batch).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gigagan.config import DiscriminatorConfig
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import attention_stack
from gigagan.models.frozen import TextFeatures
from gigagan.models.layers import EqualConv, EqualLinear, downsample
from gigagan.models.text import TextTransformer


class Exit(NamedTuple):
    """What phi gives at an exit, for every level that has entered before it."""

    features: Tensor
    """[j * B, C_j, H_j, W_j], levels 0 ... j - 1 side by side."""
    unconditional: Tensor
    """[j * B, 1, H_j, W_j]: the part of the logit that no text changes."""


Logits = list[dict[int, Tensor]]
"""logits[i][j]: entry level i (0 = full resolution), exit j in i + 1 ... L; each [B, 1, H_j, W_j]; high means real."""


class ResidualBlock(nn.Module):
    """(skip(x) + f(x)) * gain with two 3x3 convolutions, the second at stride 2 when `down` (StyleGAN2)."""

    def __init__(self, in_channels: int, out_channels: int, *, gain: float, down: bool) -> None:
        super().__init__()
        self.conv0 = EqualConv(in_channels, in_channels, kernel=3, activation=True)
        self.conv1 = EqualConv(in_channels, out_channels, kernel=3, down=down, activation=True, out_gain=gain)
        self.skip = EqualConv(in_channels, out_channels, kernel=1, bias=False, out_gain=gain) if down else None
        self.gain = gain

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        y = self.conv1(self.conv0(x))
        if self.skip is None:
            return torch.add(y, x, alpha=self.gain)
        return y + self.skip(downsample(x))


class Collapse(nn.Module):
    """The last stage's way out: a 4x4 convolution of a 4x4 map, which is a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = EqualLinear(channels * 16, channels, activation=True)

    def forward(self, x: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B C 1 1"]:
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))[:, :, None, None]


class Stage(nn.Module):
    """One stage of phi: fromRGB for the level that enters here, self-attention, convolution to half the side."""

    def __init__(self, cfg: DiscriminatorConfig, resolution: int, *, num_blocks: int) -> None:
        super().__init__()
        channels = cfg.channels(resolution)
        last = resolution == 4
        # Unstated: what follows fromRGB; LeakyReLU, as StyleGAN2.
        self.from_rgb = EqualConv(3, channels, kernel=1, activation=True)
        self.attention = attention_stack(cfg.attention, resolution, channels)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, channels, gain=cfg.residual_gain, down=False) for _ in range(num_blocks - 1)
        )
        self.exit: nn.Module = (
            Collapse(channels)
            if last
            else ResidualBlock(channels, cfg.channels(resolution // 2), gain=cfg.residual_gain, down=True)
        )

    def forward(self, x: Float[Tensor, "M C H W"]) -> Float[Tensor, "M C2 H2 W2"]:
        for attention in self.attention:
            x = attention(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.exit(x)
        return y


class Head(nn.Module):
    """psi_j(phi, t_D) + Conv_1x1(phi): a text-conditional and an unconditional logit, added (Eq. 7)."""

    # Unstated: psi_j's width and form; LeakyReLU between its layers, all but the last demodulated.

    def __init__(self, channels: int, *, hidden_channels: int, text_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [channels] + [hidden_channels] * (num_layers - 1) + [1]
        self.psi = nn.ModuleList(
            AdaptiveConv(
                widths[i],
                widths[i + 1],
                style_dim=text_dim,
                kernel=1,
                demodulate=i < num_layers - 1,
                activation=i < num_layers - 1,
            )
            for i in range(num_layers)
        )
        self.unconditional = EqualConv(channels, 1, kernel=1)

    def look(self, x: Float[Tensor, "M C H W"]) -> Float[Tensor, "M 1 H W"]:
        """The unconditional logit, which no text changes."""
        return self.unconditional(x).to(torch.float32)

    def forward(
        self, x: Float[Tensor, "M C H W"], unconditional: Float[Tensor, "M 1 H W"], t_D: Float[Tensor, "M D"]
    ) -> Float[Tensor, "M 1 H W"]:
        for layer in self.psi:
            x = layer(x, t_D)
        return x.to(torch.float32) + unconditional


class Discriminator(nn.Module):
    """D: (pyramid, text) -> logits[i][j]; `phi`, `text` and `judge` are its parts, for judging one pass twice."""

    def __init__(self, cfg: DiscriminatorConfig, *, resolution: int, feature_dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.resolution = resolution
        self.feature_dim = feature_dim
        self.num_levels = int(math.log2(resolution)) - 1
        self.text = TextTransformer(feature_dim, dim=cfg.text_dim, num_layers=cfg.text_layers, num_heads=cfg.text_heads)
        sides = [resolution >> i for i in range(self.num_levels)]
        self.stages = nn.ModuleDict(
            {f"{r}x{r}": Stage(cfg, r, num_blocks=cfg.blocks[int(math.log2(r)) - 2]) for r in sides}
        )
        self.heads = nn.ModuleDict()
        for r in sides:
            out_side = r // 2 if r > 4 else 1
            channels = cfg.channels(max(out_side, 4))
            self.heads[f"{out_side}x{out_side}"] = Head(
                channels,
                hidden_channels=min(channels, cfg.head_channel_max),
                text_dim=cfg.text_dim,
                num_layers=cfg.head_layers,
            )

    def forward(self, pyramid: list[Tensor], features: TextFeatures, dtype: torch.dtype = torch.float32) -> Logits:
        return self.judge(self.phi(pyramid, dtype=dtype), self.text(features).t_global)

    def phi(self, pyramid: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Exit]:
        """Exits 1 ... L of a pyramid; what is seen there can be judged under several captions."""
        assert len(pyramid) == self.num_levels, (len(pyramid), self.num_levels)
        features: list[Tensor] = []
        x: Tensor | None = None
        for img, stage in zip(pyramid, self.stages.values(), strict=True):
            assert isinstance(stage, Stage)
            entering = stage.from_rgb(img.to(dtype).contiguous(memory_format=torch.channels_last))
            x = stage(entering if x is None else torch.cat([x, entering]))
            features.append(x)
        heads = [head for head in self.heads.values() if isinstance(head, Head)]
        return [Exit(x, head.look(x)) for x, head in zip(features, heads, strict=True)]

    def judge(self, exits: list[Exit], t_D: Float[Tensor, "B D"]) -> Logits:
        """Logits of phi's features under these captions; logits[i][j] as in `Logits`."""
        logits: Logits = [{} for _ in exits]
        for j, (seen, head) in enumerate(zip(exits, self.heads.values(), strict=True), start=1):
            levels = head(seen.features, seen.unconditional, t_D.repeat(j, 1)).chunk(j)
            for i in range(j):
                logits[i][j] = levels[i]
        return logits
