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
from gigagan.models.layers import EqualConv, EqualLinear, downsample, normalize
from gigagan.models.text import text_layers


class Exit(NamedTuple):
    """What phi gives at an exit, for every level that has entered before it."""

    features: Tensor
    """[M, C_j, H_j, W_j], the levels that have entered so far (0 ... j - 1, while there are more) side by side."""
    unconditional: Tensor
    """[M, 1, H_j, W_j]: the part of the logit that no text changes."""


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


def minibatch_std(x: Float[Tensor, "B C H W"], group: int) -> Float[Tensor, "B 1 H W"]:
    """Spread of the features over neighbors in groups, a number a group (Karras et al. 2018).

    Groups don't reach over the border of generated and real pictures where both come in multiples of `group`.
    """
    B, _, H, W = x.shape
    group = math.gcd(B, group)
    groups = x.to(torch.float32).unflatten(0, (-1, group))
    spread = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return spread.repeat_interleave(group)[:, None, None, None].expand(-1, -1, H, W).to(x.dtype)


class Collapse(nn.Module):
    """The last stage's way out: a 4x4 convolution of a 4x4 map, which is a linear layer."""

    def __init__(self, channels: int, *, std_group: int) -> None:
        super().__init__()
        self.std_group = std_group
        self.linear = EqualLinear((channels + (std_group > 0)) * 16, channels, activation=True)

    def forward(self, x: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B C2 1 1"]:
        if self.std_group:
            x = torch.cat([x, minibatch_std(x, self.std_group)], dim=1)
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))[:, :, None, None]


class Stage(nn.Module):
    """One stage of phi: fromRGB where a level enters here, self-attention, convolution to half the side."""

    def __init__(self, cfg: DiscriminatorConfig, resolution: int, *, num_blocks: int, enters: bool) -> None:
        super().__init__()
        channels = cfg.channels(resolution)
        last = resolution == 4
        # Unstated: what follows fromRGB; LeakyReLU, as StyleGAN2.
        self.from_rgb = EqualConv(3, channels, kernel=1, activation=True) if enters else None
        self.attention = attention_stack(cfg.attention, resolution, channels)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, channels, gain=cfg.residual_gain, down=False) for _ in range(num_blocks - 1)
        )
        self.exit: nn.Module = (
            Collapse(channels, std_group=cfg.minibatch_std)
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


class ExitHead(nn.Module):
    """What judges an exit: a logit that no condition changes, to which a conditional one is added."""

    unconditional: EqualConv

    def look(self, x: Float[Tensor, "M C H W"]) -> Float[Tensor, "M 1 H W"]:
        """The unconditional logit, which no text changes."""
        return self.unconditional(x).to(torch.float32)


class Head(ExitHead):
    """psi_j(phi, t_D) + Conv_1x1(phi): a text-conditional and an unconditional logit, added (Eq. 7).

    Without text (`text_dim` 0) there is no psi_j.
    """

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
            for i in range(num_layers if text_dim else 0)
        )
        self.unconditional = EqualConv(channels, 1, kernel=1)

    def forward(
        self, x: Float[Tensor, "M C H W"], unconditional: Float[Tensor, "M 1 H W"], t_D: Float[Tensor, "M D"]
    ) -> Float[Tensor, "M 1 H W"]:
        if not self.psi:
            return unconditional
        for layer in self.psi:
            x = layer(x, t_D)
        return x.to(torch.float32) + unconditional


class ProjectionHead(ExitHead):
    """<phi, map(c)> / sqrt(C) + Conv_1x1(phi): how far D's features go in the direction of the class (paper 4.2)."""

    def __init__(self, channels: int, *, text_dim: int, num_layers: int) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            *(EqualLinear(text_dim, text_dim, activation=True) for _ in range(num_layers)),
            EqualLinear(text_dim, channels),
        )
        self.unconditional = EqualConv(channels, 1, kernel=1)

    def forward(
        self, x: Float[Tensor, "M C H W"], unconditional: Float[Tensor, "M 1 H W"], t_D: Float[Tensor, "M D"]
    ) -> Float[Tensor, "M 1 H W"]:
        direction = self.mapping(normalize(t_D))[:, :, None, None] / math.sqrt(x.shape[1])
        return (x.to(torch.float32) * direction).sum(dim=1, keepdim=True) + unconditional


class Discriminator(nn.Module):
    """D: (pyramid, text) -> logits[i][j]; `phi`, `text` and `judge` are its parts, for judging one pass twice."""

    def __init__(self, cfg: DiscriminatorConfig, *, resolution: int, feature_dim: int, levels: int = 0) -> None:
        """With cfg.multi_scale `levels` of the pyramid enter (0 = one at every side), else the picture alone."""
        super().__init__()
        self.cfg = cfg
        self.resolution = resolution
        self.feature_dim = feature_dim
        sides = [resolution >> i for i in range(int(math.log2(resolution)) - 1)]
        self.num_levels = (levels or len(sides)) if cfg.multi_scale else 1
        self.text = text_layers(feature_dim, dim=cfg.text_dim, num_layers=cfg.text_layers, num_heads=cfg.text_heads)
        self.stages = nn.ModuleDict(
            {
                f"{r}x{r}": Stage(cfg, r, num_blocks=cfg.blocks[int(math.log2(r)) - 2], enters=i < self.num_levels)
                for i, r in enumerate(sides)
            }
        )
        exits = [r // 2 if r > 4 else 1 for r in sides] if cfg.multi_scale else [1]
        self.heads = nn.ModuleDict({f"{r}x{r}": _head(cfg, cfg.channels(max(r, 4))) for r in exits})

    def forward(self, pyramid: list[Tensor], features: TextFeatures, dtype: torch.dtype = torch.float32) -> Logits:
        return self.judge(self.phi(pyramid, dtype=dtype), self.text(features).t_global)

    def phi(self, pyramid: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Exit]:
        """Exits 1 ... L of a pyramid, or the last one of the picture alone; judged under any number of captions."""
        assert len(pyramid) == self.num_levels, (len(pyramid), self.num_levels)
        features: list[Tensor] = []
        x: Tensor | None = None
        for i, stage in enumerate(self.stages.values()):
            assert isinstance(stage, Stage)
            if stage.from_rgb is not None:
                entering = stage.from_rgb(pyramid[i].to(dtype).contiguous(memory_format=torch.channels_last))
                x = entering if x is None else torch.cat([x, entering])
            x = stage(x)
            features.append(x)
        heads = [head for head in self.heads.values() if isinstance(head, ExitHead)]
        return [Exit(x, head.look(x)) for x, head in zip(features[-len(heads) :], heads, strict=True)]

    def judge(self, exits: list[Exit], t_D: Float[Tensor, "B D"]) -> Logits:
        """Logits of phi's features under these captions; logits[i][j] as in `Logits`."""
        logits: Logits = [{} for _ in range(self.num_levels)]
        for j, (seen, head) in enumerate(zip(exits, self.heads.values(), strict=True), start=1):
            entered = min(j, self.num_levels)
            levels = head(seen.features, seen.unconditional, t_D.repeat(entered, 1)).chunk(entered)
            for i in range(entered):
                logits[i][j] = levels[i]
        return logits


def _head(cfg: DiscriminatorConfig, channels: int) -> nn.Module:
    if cfg.head == "projection" and cfg.text_dim:
        return ProjectionHead(channels, text_dim=cfg.text_dim, num_layers=cfg.head_layers)
    hidden = min(channels, cfg.head_channel_max)
    return Head(channels, hidden_channels=hidden, text_dim=cfg.text_dim, num_layers=cfg.head_layers)
