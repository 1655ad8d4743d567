"""Learned text layers T on frozen features (paper 2): t_local and t_global.

Axes: B batch, T tokens, E width of the frozen features, D text width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gigagan.models.attention import MLP, ChannelNorm, L2Attention
from gigagan.models.frozen import TextFeatures
from gigagan.models.layers import EqualLinear


@dataclass(frozen=True)
class TextCondition:
    """What the networks know of a prompt."""

    t_local: Float[Tensor, "B T D"]
    """A vector for each token but the global one."""
    mask: Bool[Tensor, "B T"]
    """True where t_local holds a real token."""
    t_global: Float[Tensor, "B D"]
    """The prompt as a whole."""


class TextBlock(nn.Module):
    """Transformer layer over tokens: x + attention(norm(x)), x + mlp(norm(x))."""

    # Unstated: the attention inside T; L2 with free keys, as in cross-attention.

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.attention = L2Attention(dim, dim, inner_dim=dim, num_heads=num_heads, tied=False)
        self.mlp_norm = ChannelNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        tokens = self.norm(x)
        x = x + self.attention(tokens, tokens, mask)
        return x + self.mlp(self.mlp_norm(x))


class NoText(nn.Module):
    """In place of T in an unconditional network: a condition of width 0."""

    def forward(self, features: TextFeatures) -> TextCondition:
        B, device = len(features.tokens), features.tokens.device
        no_words = torch.zeros(B, 0, 0, device=device), torch.zeros(B, 0, dtype=torch.bool, device=device)
        return TextCondition(*no_words, torch.zeros(B, 0, device=device))


def text_layers(feature_dim: int, *, dim: int, num_layers: int, num_heads: int) -> nn.Module:
    """T of that width; of width 0 there is none."""
    if not dim:
        return NoText()
    return TextTransformer(feature_dim, dim=dim, num_layers=num_layers, num_heads=num_heads)


class TextTransformer(nn.Module):
    """T: frozen features -> t_local (every token but the global one) and t_global."""

    def __init__(self, feature_dim: int, *, dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.project = EqualLinear(feature_dim, dim)
        self.layers = nn.ModuleList(TextBlock(dim, num_heads) for _ in range(num_layers))
        self.norm = ChannelNorm(dim)

    def forward(self, features: TextFeatures) -> TextCondition:
        x = self.project(features.tokens)
        for layer in self.layers:
            x = layer(x, features.mask)
        x = self.norm(x)

        t_global = x[torch.arange(x.shape[0], device=x.device), features.global_index]
        rest = others(features.global_index, num_tokens=x.shape[1])
        t_local = x.gather(1, rest[:, :, None].expand(-1, -1, x.shape[2]))
        return TextCondition(t_local, features.mask.gather(1, rest), t_global)


def others(index: Int[Tensor, " B"], *, num_tokens: int) -> Int[Tensor, "B T"]:
    """Positions of all tokens but the one at `index`, in order; T = num_tokens - 1."""
    position = torch.arange(num_tokens - 1, device=index.device)[None]
    return position + (position >= index[:, None])
