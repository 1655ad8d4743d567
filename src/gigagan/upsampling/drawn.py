"""The upsampler behind the base generator: its pictures, larger, each from the prompt and seed that drew it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gigagan.errors import ConfigError
from gigagan.models.frozen import TextFeatures
from gigagan.models.generator import Generator
from gigagan.models.inference import prepared
from gigagan.models.text import TextCondition
from gigagan.models.upsampler import Upsampler, with_level


class SecondStage:
    """Takes the generator's largest pictures on, one after the other: each is work enough."""

    def __init__(self, upsampler: Upsampler, generator: Generator, dtype: torch.dtype) -> None:
        """Raises ConfigError where the two don't fit."""
        given, taken = generator.cfg.resolution, upsampler.cfg.input_resolution
        if given != taken:
            raise ConfigError(f"the generator draws {given} px and the upsampler takes {taken}; give two that fit")
        self.network = prepared(upsampler, dtype)
        self.dtype = dtype

    def text(self, features: TextFeatures) -> TextCondition:
        """What a prompt is to it."""
        condition: TextCondition = self.network.text(features)
        return condition

    def __call__(self, small: Tensor, conditions: Sequence[TextCondition | None], seeds: Sequence[int]) -> list[Tensor]:
        """The pyramid above pictures [B, 3, side, side] in [-1, 1], full size first."""
        network, pyramids = self.network, []
        for one, condition, seed in zip(small.split(1), conditions, seeds, strict=True):
            assert condition is not None
            z = torch.randn(1, network.cfg.z_dim, generator=torch.Generator().manual_seed(seed)).to(one.device)
            w = network.mapping(z, condition.t_global)
            given = with_level(one, torch.zeros(1, device=one.device))
            pyramids.append(network.synthesize(w, condition, given, dtype=self.dtype))
        return [torch.cat(levels) for levels in zip(*pyramids, strict=True)]
