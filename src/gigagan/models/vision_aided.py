"""The vision-aided discriminator (paper 5.4): a frozen image network's feature maps and text to logits.

Real and generated pictures are told apart in features that someone else learned: what these say of a picture is
projected at random, once and for all, and small text-modulated heads judge it.
Axes: B batch, C channels, H and W height and width, D text width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gigagan.config import VisionConfig
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.frozen import ImageNetwork, TextFeatures
from gigagan.models.layers import EqualConv, normalize
from gigagan.models.text import TextTransformer


class VisionHead(nn.Module):
    """One feature map to a logit map: fixed projection, a 3x3 convolution, then 3x3 and 1x1 modulated by text.

    As in D (Eq. 7) an unconditional 1x1 convolution of the same features is added.
    """

    projection: Tensor

    def __init__(self, in_channels: int, *, channels: int, text_dim: int, down: bool) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(channels, in_channels, 1, 1) / math.sqrt(in_channels))
        self.entry = EqualConv(channels, channels, kernel=3, down=down, activation=True)
        self.conditional = nn.ModuleList(
            (
                AdaptiveConv(channels, channels, style_dim=text_dim, activation=True),
                AdaptiveConv(channels, 1, style_dim=text_dim, kernel=1, demodulate=False),
            )
        )
        self.unconditional = EqualConv(channels, 1, kernel=1)

    def look(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """What doesn't depend on the text."""
        # Unstated: the scale of the features; unit length over channels times sqrt(C), as maps differ a hundredfold.
        x = normalize(x.movedim(1, -1)).movedim(-1, 1)
        return self.entry(F.conv2d(x, self.projection))

    def judge(self, y: Float[Tensor, "B C H W"], t: Float[Tensor, "B D"]) -> Float[Tensor, "B 1 H W"]:
        """Logits under a caption each; high means real."""
        x = y
        for layer in self.conditional:
            x = layer(x, t)
        return x + self.unconditional(y)


class VisionAidedDiscriminator(nn.Module):
    """V: maps of a frozen image network, text -> a logit map for each; `look` and `judge` judge one look twice.

    Runs in float32, as the frozen network does.
    """

    # Unstated: which layers, how wide, how many convolutions; what the network names, two convolutions (paper.md 5.4).

    def __init__(self, cfg: VisionConfig, network: ImageNetwork, *, feature_dim: int) -> None:
        super().__init__()
        self.text = TextTransformer(feature_dim, dim=cfg.text_dim, num_layers=cfg.text_layers, num_heads=cfg.text_heads)
        self.judged_maps = network.judged_maps
        self.heads = nn.ModuleList(
            VisionHead(network.map_channels[i], channels=cfg.channels, text_dim=cfg.text_dim, down=down)
            for i, down in self.judged_maps.items()
        )

    def forward(self, maps: Sequence[Tensor], features: TextFeatures) -> list[Tensor]:
        return self.judge(self.look(maps), self.text(features).t_global)

    def look(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the heads see in the maps, finest first."""
        return [head.look(maps[i]) for head, i in zip(self._heads(), self.judged_maps, strict=True)]

    def judge(self, seen: Sequence[Tensor], t: Float[Tensor, "B D"]) -> list[Tensor]:
        """Logits [B, 1, H, W] of what was seen under these captions."""
        return [head.judge(y, t) for head, y in zip(self._heads(), seen, strict=True)]

    def _heads(self) -> list[VisionHead]:
        return [head for head in self.heads if isinstance(head, VisionHead)]
