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
        self.traceable = False
        """Whether to take the same form for any number of keys: the unfused one."""
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
        fused = not self.traceable and (x.device.type != "cpu" or k.shape[2] > slow_fused)
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
        window: int = 0,
    ) -> None:
        """`window`: side of the largest map over which self-attention reaches; 0 = it reaches over any."""
        super().__init__()
        self.gain = residual_gain
        self.window = window
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
        H, W = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # [B, HW, C]; a view when x is channels-last

        # Self-attention.
        tokens = self.self_norm(x)
        if self.style_token is None:
            style = tokens[:, :0]
        else:
            assert w is not None
            style = self.style_token(w).to(x.dtype)[:, None]
        if self.window and max(H, W) > self.window:
            attended = self._windowed(tokens.unflatten(1, (H, W)), style).flatten(1, 2)
        else:
            attended = self.self_attention(tokens, torch.cat([tokens, style], dim=1))
        x = torch.add(x, attended, alpha=self.gain)

        # Cross-attention.
        if self.cross_attention is not None and self.cross_norm is not None:
            assert t_local is not None
            attended = self.cross_attention(self.cross_norm(x), t_local.to(x.dtype), text_mask)
            x = torch.add(x, attended, alpha=self.gain)

        # MLP.
        x = torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.gain)
        return x.transpose(1, 2).unflatten(2, (H, W))

    # Deviation: above the training size self-attention works in windows of it, half overlapping and blended; so it sees
    # no more than such a picture holds, costs in proportion to the picture, and leaves no border between windows.
    def _windowed(self, tokens: Float[Tensor, "B H W C"], style: Float[Tensor, "B n C"]) -> Float[Tensor, "B H W C"]:
        """Self-attention within windows, each place the mean of what the windows over it say, by hat weights."""
        B, H, W = tokens.shape[:3]
        side_y, side_x = min(H, self.window), min(W, self.window)
        rows, columns = window_starts(H, self.window), window_starts(W, self.window)
        hat_y, hat_x = (_hat(side, length).to(tokens) for side, length in ((side_y, H), (side_x, W)))
        hat = (hat_y[:, None] * hat_x)[:, :, None]
        total = torch.zeros_like(tokens)
        for top in rows:  # a row of windows at once: memory is bounded by the picture's width
            part = tokens[:, top : top + side_y]
            windows = torch.cat([part[:, :, left : left + side_x] for left in columns]).flatten(1, 2)
            context = torch.cat([windows, style.repeat(len(columns), 1, 1)], dim=1)
            attended = self.self_attention(windows, context).unflatten(1, (side_y, side_x)) * hat
            for left, one in zip(columns, attended.split(B), strict=True):
                total[:, top : top + side_y, left : left + side_x] += one
        weight_y, weight_x = (
            _coverage(starts, hat_, length).to(tokens)
            for starts, hat_, length in ((rows, hat_y, H), (columns, hat_x, W))
        )
        return total / (weight_y[:, None] * weight_x)[:, :, None]


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin along an axis: every half window, the last one where it ends with the axis.

    Of a part of the axis that begins at a multiple of half a window they are those of the whole, but for windows that
    the part cuts off.
    """
    if length <= window:
        return [0]
    return sorted({*range(0, length - window, window // 2), length - window})


def _hat(side: int, length: int) -> Float[Tensor, " n"]:
    """Weights of a window's places: a hat, from near 0 at its ends to 1 at its middle; 1 where one window is all."""
    if side == length:
        return torch.ones(side)
    return 1 - (torch.arange(side) + 0.5 - side / 2).abs() / (side / 2)


def _coverage(starts: list[int], hat: Float[Tensor, " n"], length: int) -> Float[Tensor, " L"]:
    """Sum of the weights of all windows over each place of an axis."""
    total = torch.zeros(length, dtype=hat.dtype)
    for start in starts:
        total[start : start + len(hat)] += hat
    return total


def attention_stack(
    cfg: AttentionConfig,
    resolution: int,
    channels: int,
    *,
    style_dim: int = 0,
    text_dim: int = 0,
    window: int = 0,
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
            window=window,
        )
        for _ in range(cfg.depth_at(resolution))
    )
