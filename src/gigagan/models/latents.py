"""A point of the latent space: all that the synthesis networks read of a picture.

Axes: N pictures, L style layers, S style, T text tokens, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    enlarged: "Latents | None" = None
    """The same for the upsampler's layers, where one is to draw the picture larger."""

    @classmethod
    def everywhere(cls, w: Float[Tensor, "N S"], condition: TextCondition, num_layers: int) -> "Latents":
        """The same style and words at every layer, as training has it."""
        ws, t_local, mask = (
            x[:, None].expand(-1, num_layers, *x.shape[1:])
            for x in (w, condition.t_local, condition.mask.to(torch.float32))
        )
        return cls(ws, t_local, mask)

    @classmethod
    def join(cls, parts: "Sequence[Latents]") -> "Latents":
        """One after the other."""
        large = [part.enlarged for part in parts if part.enlarged is not None]
        assert len(large) in (0, len(parts)), "some points are drawn larger and some aren't"
        return cls(
            torch.cat([part.ws for part in parts]),
            torch.cat([part.t_local for part in parts]),
            torch.cat([part.mask for part in parts]),
            cls.join(large) if large else None,
        )

    def __getitem__(self, index: slice | Tensor) -> "Latents":
        large = None if self.enlarged is None else self.enlarged[index]
        return Latents(self.ws[index], self.t_local[index], self.mask[index], large)

    def __len__(self) -> int:
        return len(self.ws)

    @property
    def num_layers(self) -> int:
        """Style layers of the generator."""
        return self.ws.shape[1]

    @property
    def base(self) -> "Latents":
        """The point for the generator alone: its picture isn't drawn larger."""
        return replace(self, enlarged=None)


def truncate(w: Tensor, w_mean: Tensor, w_avg: Tensor, psi: float) -> Tensor:
    """Text-conditional truncation: lerp(w_mean, lerp(w_avg, w, psi), psi) (paper 9); w_mean is that of the prompt.

    psi = 1 gives w itself, psi = 0 gives w_mean itself.
    """
    return w if psi == 1 else torch.lerp(w_mean, torch.lerp(w_avg.to(w.dtype), w, psi), psi)
