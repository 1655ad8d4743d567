"""A generator made ready for drawing: what a call needs of the weights is computed once."""

from copy import deepcopy
from typing import TypeVar

import torch

from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import L2Attention
from gigagan.models.generator import Generator
from gigagan.models.layers import EqualConv, EqualLinear
from gigagan.models.upsampler import Upsampler

N = TypeVar("N", Generator, Upsampler)

READ_STYLE = ("to_scale", "to_select", "style_token")


def prepared(generator: N, dtype: torch.dtype, *, pack: bool = True) -> N:
    """A copy that draws the same pictures faster: gains folded, Gram matrices kept, weights in dtype and packed.

    The text layers, the mapping network and what reads w stay float32, as in training. The copy is for drawing alone:
    it can't be trained, nor saved as a model. Packed weights are opaque to `torch.compile`, which packs by itself.
    """
    copy = deepcopy(generator).eval().requires_grad_(False)
    for name, module in copy.named_modules():
        if isinstance(module, EqualLinear | EqualConv | AdaptiveConv):
            in_float32 = not name.startswith("synthesis.") or name.endswith(READ_STYLE)
            module.prepare(torch.float32 if in_float32 else dtype, pack=pack)
    return copy


def traceable(network: N) -> N:
    """A copy that draws in float32 by equal forms that don't depend on the batch or the size: one graph for all."""
    copy = prepared(network, torch.float32, pack=False)
    for module in copy.modules():
        if isinstance(module, AdaptiveConv | L2Attention):
            module.traceable = True
    return copy
