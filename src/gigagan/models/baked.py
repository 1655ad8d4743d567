"""Baking: for one prompt and style, a network of plain convolutions (mixing, modulation, demodulation done once).

Where the same style is used again and again (the tiles of one picture, frames that share it, a served prompt), what
depends on it alone needn't be computed each time. Axes: B batch, C channels, H and W height and width, S style.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import AttentionBlock, L2Attention, l2_attention
from gigagan.models.layers import ACTIVATION_SLOPE, EqualLinear, folded, pack_conv, packable, packed_conv, upsample

N = TypeVar("N", bound=nn.Module)


class BakedConv(nn.Module):
    """An adaptive convolution under one style; the style that it is called with is ignored."""

    def __init__(self, layer: AdaptiveConv, w: Float[Tensor, "1 S"], dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.kernel_of(w).to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", folded(layer.bias.detach(), layer.out_gain, dtype))
        self.packed = pack_conv(weight) if packable(weight) else None
        self.up, self.activation = layer.up, layer.activation

    weight: Tensor
    bias: Tensor

    def forward(self, x: Float[Tensor, "B I H W"], w: Float[Tensor, "B S"]) -> Float[Tensor, "B O H2 W2"]:
        kernel = self.weight.shape[-1]
        if self.packed is None:
            y = F.conv2d(x, self.weight, self.bias, padding=kernel // 2)
        else:
            y = packed_conv(x, self.packed, self.bias, kernel=kernel)
        if self.up:
            y = upsample(y)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y


class BakedCrossAttention(nn.Module):
    """Cross-attention to one prompt: its real tokens' keys and values, computed once."""

    def __init__(self, layer: L2Attention, context: Float[Tensor, "1 K D"], key_mask: Tensor | None) -> None:
        super().__init__()
        assert key_mask is None or key_mask.dtype == torch.bool, "words of blended prompts can't be baked"
        self.layer = layer
        context = context if key_mask is None else context[:, key_mask[0]]
        self.register_buffer("k", layer.split((layer.to_k or layer.to_q)(context)))
        self.register_buffer("v", layer.split(layer.to_v(context)))

    k: Tensor
    v: Tensor

    def forward(self, x: Float[Tensor, "B Q C"], context: Tensor, key_mask: Tensor | None) -> Float[Tensor, "B Q C"]:
        q = self.layer.split(self.layer.to_q(x))
        k, v = (part.expand(len(x), -1, -1, -1) for part in (self.k, self.v))
        y: Tensor = self.layer.to_out(l2_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class Baked(nn.Module):
    """A value that was computed once, whatever comes in."""

    def __init__(self, value: Float[Tensor, "1 C"]) -> None:
        super().__init__()
        self.register_buffer("value", value)

    value: Tensor

    def forward(self, w: Float[Tensor, "B S"]) -> Float[Tensor, "B C"]:
        return self.value.expand(len(w), -1)


@torch.no_grad()
def baked(network: N, run: Callable[[N], Any], dtype: torch.dtype) -> N:
    """A copy of a network that knows one style and one prompt; any batch, tile or size of it is drawn with these.

    `run` calls the copy once, with a batch of one; the styles and words that reach each layer then stay with it, and
    those of later calls are ignored. The copy can't be trained nor saved.
    """
    copy = deepcopy(network).eval()
    seen: dict[nn.Module, tuple[Any, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[module] = inputs

    handles = [
        module.register_forward_pre_hook(note)
        for module in copy.modules()
        if isinstance(module, AdaptiveConv | L2Attention | EqualLinear)
    ]
    run(copy)
    for handle in handles:
        handle.remove()
    for parent in list(copy.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, AdaptiveConv):
                setattr(parent, name, BakedConv(module, seen[module][1], dtype))
            elif isinstance(parent, AttentionBlock) and name == "cross_attention":
                assert isinstance(module, L2Attention)
                setattr(parent, name, BakedCrossAttention(module, *seen[module][1:]))
            elif isinstance(parent, AttentionBlock) and name == "style_token":
                setattr(parent, name, Baked(module(*seen[module])))
    return copy
