"""A point of the latent space: all that the synthesis network reads of a picture.

Axes: N pictures, L style layers, S style, T text tokens, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from gigagan.models.text import TextCondition


@dataclass(frozen=True)
class Latents:
    """Pictures that aren't drawn yet: a style and words for each layer, coarsest first."""

    ws: Float[Tensor, "N L S"]
    t_local: Float[Tensor, "N L T D"]
    """Words; the attention of a side reads those of its last layer."""
    mask: Float[Tensor, "N L T"]
    """Share of each word in the attention: 1 = a word of the prompt, 0 = none, between where prompts are blended."""

    @classmethod
    def everywhere(cls, w: Float[Tensor, "N S"], condition: TextCondition, num_layers: int) -> "Latents":
        """The same style and words at every layer, as training has it."""
        parts = (w, condition.t_local, condition.mask.to(torch.float32))
        return cls(*(x[:, None].expand(-1, num_layers, *x.shape[1:]) for x in parts))

    @classmethod
    def join(cls, parts: "Sequence[Latents]") -> "Latents":
        """One after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in NAMES))

    def __getitem__(self, index: slice | Tensor) -> "Latents":
        return Latents(*(getattr(self, name)[index] for name in NAMES))

    def __len__(self) -> int:
        return len(self.ws)

    @property
    def num_layers(self) -> int:
        """Style layers."""
        return self.ws.shape[1]


NAMES = tuple(field.name for field in fields(Latents))
