"""The upsampler behind the base generator: its pictures, larger, each from the latents and the words that drew it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gigagan.errors import ConfigError
from gigagan.models.frozen import TextFeatures
from gigagan.models.generator import Generator
from gigagan.models.inference import prepared
from gigagan.models.latents import Latents
from gigagan.models.text import TextCondition
from gigagan.models.upsampler import Upsampler, with_level


class SecondStage:
    """Takes the generator's largest pictures on, one after the other: each is work enough."""

    def __init__(self, upsampler: Upsampler, generator: Generator, dtype: torch.dtype) -> None:
        """Raises ConfigError where the two don't fit."""
        given, taken = generator.cfg.resolution, upsampler.cfg.input_resolution
        if given != taken:
            raise ConfigError(f"the generator draws {given} px and the upsampler takes {taken}; give two that fit")
        given, taken = generator.cfg.z_dim, upsampler.cfg.z_dim
        if given != taken:
            raise ConfigError(f"z_dim is {given} in the generator and {taken} in the upsampler; give two that fit")
        self.network = prepared(upsampler, dtype)
        self.dtype = dtype

    def text(self, features: TextFeatures) -> TextCondition:
        """What a prompt is to it."""
        condition: TextCondition = self.network.text(features)
        return condition

    def latents(self, z: Tensor, conditions: Sequence[TextCondition]) -> Latents:
        """Its points for those of the generator: the same z [N, Z], with what it reads in the prompts."""
        parts = [
            Latents.everywhere(self.network.mapping(one, condition.t_global), condition, self.network.num_ws)
            for one, condition in zip(z.split(1), conditions, strict=True)
        ]
        return Latents.join(parts)

    def __call__(self, small: Tensor, latents: Latents) -> list[Tensor]:
        """The pyramid above pictures [N, 3, side, side] in [-1, 1], full size first."""
        pyramids = []
        for n, one in enumerate(small.split(1)):
            point = latents[n : n + 1]
            words = point.t_local[:, 0], point.mask[:, 0]  # the same at every layer
            given = with_level(one, torch.zeros(1, device=one.device))
            pyramids.append(self.network.synthesis(point.ws, *words, given, dtype=self.dtype))
        return [torch.cat(levels) for levels in zip(*pyramids, strict=True)]
