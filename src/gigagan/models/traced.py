"""Parts of the networks as exporters take them: tensors in, tensors out, batches and sides of any length.

A part is traced once, at TRACED_BATCH pictures, in forms that hold for any number (`traceable`).
Axes: B batch, T text tokens.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim

from gigagan.models.frozen import ClipText, MiniLM, TextEncoder, TextFeatures
from gigagan.models.generator import Generator
from gigagan.models.inference import traceable
from gigagan.models.text import NoText, TextCondition
from gigagan.models.upsampler import INPUT_CHANNELS, STRIDE, Upsampler

N = TypeVar("N", Generator, Upsampler)

TRACED_BATCH = 2
MAX_BATCH = 64
"""Pictures at once that a pt2 or AOTInductor file takes; ONNX and OpenVINO files have no limit."""
MIN_SIDE = 2 * STRIDE
"""Of the small picture that an upsampler takes; at its least map of a single pixel another graph would be traced."""


@dataclass(frozen=True)
class Part:
    """A graph to be."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """Examples, by name."""
    outputs: Sequence[str]
    free: dict[str, dict[int, Dim]]
    """Axes of the inputs that may have another length."""


class _Encoder(nn.Module):
    """Tokens to features. Exporters see parameters: MiniLM's weights, which are a dictionary, become such."""

    def __init__(self, encoder: MiniLM | ClipText) -> None:
        super().__init__()
        self.encoder = copy(encoder)
        if isinstance(encoder, MiniLM):
            self.names = list(encoder.weights)
            self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in encoder.weights.values())
        else:
            self.network = encoder.network

    def forward(self, ids: Tensor) -> Tensor:
        encoder = copy(self.encoder)
        if isinstance(encoder, MiniLM):
            encoder.packing = False
            encoder.weights = dict(zip(self.names, self.weights, strict=True))
        return encoder.features(ids)


class _Text(nn.Module):
    """T."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor, mask: Tensor, global_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        condition: TextCondition = self.text(TextFeatures(tokens, mask, global_index))
        return condition.t_local, condition.mask, condition.t_global


class _Mapping(nn.Module):
    """M."""

    def __init__(self, mapping: nn.Module) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(self, z: Tensor, t_global: Tensor) -> Tensor:
        w: Tensor = self.mapping(z, t_global)
        return w


class _Synthesis(nn.Module):
    """Styles and words, and of an upsampler the small picture, to a pyramid."""

    def __init__(self, synthesis: nn.Module) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, ws: Tensor, t_local: Tensor, mask: Tensor, low: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.synthesis(ws, t_local, mask, *([] if low is None else [low])))


def encoder_part(encoder: TextEncoder) -> Part | None:
    """The text encoder's graph; None where it has no weights."""
    if not isinstance(encoder, MiniLM | ClipText):
        return None
    batch = Dim("batch", min=1, max=MAX_BATCH)
    length = {1: Dim("length", min=3, max=encoder.max_tokens)} if isinstance(encoder, MiniLM) else {}
    ids = torch.zeros(TRACED_BATCH, encoder.max_tokens, dtype=torch.long)
    return Part(_Encoder(encoder), {"ids": ids}, ["features"], {"ids": {0: batch} | length})


def network_parts(network: N, num_tokens: int) -> Iterator[tuple[str, Part]]:
    """The graphs of a network by name: text (where there is some), mapping, synthesis.

    `num_tokens` of the encoder; what is left of them without the global one is the length of t_local.
    """
    cfg, B, T = network.cfg, TRACED_BATCH, num_tokens
    free = {0: Dim("batch", min=1, max=MAX_BATCH)}
    copy_ = traceable(network)
    if not isinstance(network.text, NoText):
        features = {
            "tokens": torch.zeros(B, T, network.feature_dim),
            "mask": torch.ones(B, T, dtype=torch.bool),
            "global_index": torch.zeros(B, dtype=torch.long),
        }
        outputs = ["t_local", "t_mask", "t_global"]
        yield "text", Part(_Text(copy_.text), features, outputs, dict.fromkeys(features, free))
    point = {"z": torch.zeros(B, cfg.z_dim), "t_global": torch.zeros(B, cfg.text_dim)}
    yield "mapping", Part(_Mapping(copy_.mapping), point, ["w"], dict.fromkeys(point, free))

    layers = (network.num_ws,) if isinstance(network, Generator) else ()  # an upsampler has the same words everywhere
    words = T - 1 if cfg.text_dim else 0
    inputs = {
        "ws": torch.zeros(B, network.num_ws, cfg.w_dim),
        "t_local": torch.zeros(B, *layers, words, cfg.text_dim),
        "mask": torch.ones(B, *layers, words),
    }
    axes = dict.fromkeys(inputs, free)
    sides = list(cfg.resolutions)
    if isinstance(network, Upsampler):
        side = network.cfg.input_resolution
        sides = [r for r in sides if r > side]
        inputs["low"], axes["low"] = torch.zeros(B, INPUT_CHANNELS, side, side), free
        if side > MIN_SIDE:
            # Above its own side windows of attention begin, in a number that a graph can't leave open.
            height, width = (STRIDE * Dim(name, min=MIN_SIDE // STRIDE, max=side // STRIDE) for name in "hw")
            axes["low"] = free | {2: height, 3: width}
    yield "synthesis", Part(_Synthesis(copy_.synthesis), inputs, [f"img_{r}" for r in reversed(sides)], axes)
