"""L2 attention and its blocks (paper 3.3).

Axes: B batch, Q queries, K keys, C channels, H and W height and width, S style, T text tokens, D text width.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gigagan.config import AttentionConfig
from gigagan.models.layers import EqualLinear

# Up to so many keys two products with the softmax between them beat the fused kernels on a CPU, two to three times in
# their backward pass and in bfloat16, forward in float32 only where keys are few.
UNFUSED_KEYS = 512
UNFUSED_KEYS_FLOAT32 = 128
MASKED_NORM = 1e6  # |k|^2 of a padding token: its softmax weight is exactly 0 in float32 and bfloat16


def l2_attention(
    q: Float[Tensor, "B heads Q d"],
    k: Float[Tensor, "B heads K d"],
    v: Float[Tensor, "B heads K d"],
    key_mask: Bool[Tensor, "B K"] | Float[Tensor, "B K"] | None = None,
    *,
    fused: bool = True,
) -> Float[Tensor, "B heads Q d"]:
    """softmax_j(-|q_i - k_j|^2 / sqrt(d)) v_j, over the keys that aren't masked.

    A mask of numbers in [0, 1] multiplies a key's weight before the softmax normalizes: 0 hides it, 1 changes no bit.

    Softmax ignores |q_i|^2, so the logits are (2 q.k - |k|^2) / sqrt(d). Fused, that is a dot product with two more
    channels that hold -|k|^2 (its rounding to the working dtype, and what the rounding lost), v padded to the same
    width so that the fast kernels take it; else two products with the softmax between them, equal but for rounding.
    """
    d = q.shape[-1]
    norm = k.to(torch.float32).square().sum(dim=-1, keepdim=True)
    if key_mask is not None:
        shown = key_mask
        if key_mask.is_floating_point():
            norm = norm - math.sqrt(d) * key_mask.to(torch.float32).log()[:, None, :, None]
            shown = key_mask > 0
        norm = norm.masked_fill(~shown[:, None, :, None], MASKED_NORM)
    if not fused:
        logits = (q * (2 / math.sqrt(d))) @ k.transpose(2, 3) + (norm / -math.sqrt(d)).transpose(2, 3)  # float32
        return logits.softmax(dim=3).to(v.dtype) @ v
    high = norm.to(k.dtype)
    low = (norm - high.to(torch.float32)).to(k.dtype)
    q = torch.cat([q * 2, -torch.ones_like(q[..., :2])], dim=-1)
    k = torch.cat([k, high, low], dim=-1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 2)), scale=1 / math.sqrt(d))[..., :d]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the last axis, run in the dtype of its input with float32 statistics."""

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class L2Attention(nn.Module):
    """Multi-head L2 attention of x to `context`; `tied` shares the projection of queries and keys (Kim et al. 2021)."""

    def __init__(self, dim: int, context_dim: int, *, inner_dim: int, num_heads: int, tied: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = EqualLinear(dim, inner_dim, bias=False)
        self.to_k = None if tied else EqualLinear(context_dim, inner_dim, bias=False)
        self.to_v = EqualLinear(context_dim, inner_dim, bias=False)
        self.to_out = EqualLinear(inner_dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B Q C"],
        context: Float[Tensor, "B K D"],
        key_mask: Bool[Tensor, "B K"] | Float[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        q = self.split(self.to_q(x))
        k = self.split((self.to_k or self.to_q)(context))
        v = self.split(self.to_v(context))
        slow_fused = UNFUSED_KEYS if self.training or q.dtype == torch.bfloat16 else UNFUSED_KEYS_FLOAT32
        fused = x.device.type != "cpu" or k.shape[2] > slow_fused
        return self.to_out(l2_attention(q, k, v, key_mask, fused=fused).transpose(1, 2).flatten(2))

    def split(self, x: Float[Tensor, "B K C"]) -> Float[Tensor, "B heads K d"]:
        """Channels to heads."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, K, d]


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = EqualLinear(dim, hidden_dim, activation=True)
        self.reduce = EqualLinear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        return self.reduce(self.expand(x))


def head_count(inner_dim: int, head_dim: int) -> int:
    """Heads of about head_dim that divide inner_dim evenly; at least one."""
    heads = max(inner_dim // head_dim, 1)
    while inner_dim % heads:
        heads -= 1
    return heads


class AttentionBlock(nn.Module):
    """Self-attention with w as one more token, cross-attention to t_local, MLP; each x + gain * f(norm(x)).

    Without a style there is no token, without text no cross-attention (the discriminator's trunk).
    """

    # Unstated: the norm before each branch; layer norm over channels (paper.md 3.3).
    # Unstated: how w becomes a token; projected to the layer's width and appended to keys and values alone.

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        dim_multiplier: float,
        mlp_multiplier: float,
        residual_gain: float,
        style_dim: int = 0,
        text_dim: int = 0,
    ) -> None:
        super().__init__()
        self.gain = residual_gain
        inner_dim = max(round(channels * dim_multiplier), 1)
        num_heads = head_count(inner_dim, head_dim)
        self.self_norm = ChannelNorm(channels)
        self.self_attention = L2Attention(channels, channels, inner_dim=inner_dim, num_heads=num_heads, tied=True)
        self.style_token = EqualLinear(style_dim, channels) if style_dim else None
        if text_dim:
            self.cross_norm: ChannelNorm | None = ChannelNorm(channels)
            self.cross_attention: L2Attention | None = L2Attention(
                channels, text_dim, inner_dim=inner_dim, num_heads=num_heads, tied=False
            )
        else:
            self.cross_norm = self.cross_attention = None
        self.mlp_norm = ChannelNorm(channels)
        self.mlp = MLP(channels, round(channels * mlp_multiplier))

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        w: Float[Tensor, "B S"] | None = None,
        t_local: Float[Tensor, "B T D"] | None = None,
        text_mask: Bool[Tensor, "B T"] | Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        H = x.shape[2]
        x = x.flatten(2).transpose(1, 2)  # [B, HW, C]; a view when x is channels-last

        # Self-attention.
        tokens = context = self.self_norm(x)
        if self.style_token is not None:
            assert w is not None
            context = torch.cat([tokens, self.style_token(w).to(x.dtype)[:, None]], dim=1)
        x = torch.add(x, self.self_attention(tokens, context), alpha=self.gain)

        # Cross-attention.
        if self.cross_attention is not None and self.cross_norm is not None:
            assert t_local is not None
            attended = self.cross_attention(self.cross_norm(x), t_local.to(x.dtype), text_mask)
            x = torch.add(x, attended, alpha=self.gain)

        # MLP.
        x = torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.gain)
        return x.transpose(1, 2).unflatten(2, (H, -1))


def attention_stack(
    cfg: AttentionConfig, resolution: int, channels: int, *, style_dim: int = 0, text_dim: int = 0
) -> nn.ModuleList:
    """The blocks of one side of the feature maps; none where the configuration has no attention there."""
    return nn.ModuleList(
        AttentionBlock(
            channels,
            head_dim=cfg.head_dim,
            dim_multiplier=cfg.dim_multiplier,
            mlp_multiplier=cfg.mlp_multiplier,
            residual_gain=cfg.residual_gain,
            style_dim=style_dim,
            text_dim=text_dim,
        )
        for _ in range(cfg.depth_at(resolution))
    )
