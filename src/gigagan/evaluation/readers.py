"""Small networks over frozen features that read a picture's style, its concept and its caption.

They learn from real pictures only (fit.py). Axes: B pictures, K features of cells, M of texture, H hidden
width, S styles, C concepts, Q texts, E text features, D shared space.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN_DIM = 768
SHARED_DIM = 256
Dropout = Callable[[Tensor], Tensor]


def _keep(x: Tensor) -> Tensor:
    return x


class Linear(nn.Module):
    """A linear map with weights of variance gain^2 / in_dim, drawn by a generator and not from the global state."""

    def __init__(self, in_dim: int, out_dim: int, generator: torch.Generator, *, gain: float = 1.0) -> None:
        super().__init__()
        scale = gain / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        return F.linear(x, self.weight, self.bias)


class Trunk(nn.Module):
    """Standardized features and one hidden layer."""

    def __init__(self, in_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        self.hidden = Linear(in_dim, HIDDEN_DIM, generator, gain=math.sqrt(2))  # He's, for the ReLU

    mean: Tensor
    scale: Tensor

    def standardize(self, x: Float[Tensor, "N K"]) -> None:
        """Take mean and deviation from these features; a channel that hardly moves isn't blown up."""
        deviation = x.std(dim=0) if len(x) > 1 else torch.zeros_like(x[0])
        self.mean.copy_(x.mean(dim=0))
        self.scale.copy_(1 / (deviation + 0.1 * deviation.mean() + 1e-6))

    def forward(self, x: Float[Tensor, "N K"], dropout: Dropout = _keep) -> Float[Tensor, "N H"]:
        return dropout(F.relu(self.hidden(dropout((x - self.mean) * self.scale))))


class Readers(nn.Module):
    """Style logits, concept scores and caption scores of pictures, given their features.

    A concept's vector is made from the text of its name, plus an offset learned for the concepts seen in training, so
    that one never seen can be ranked among the others. Pictures and captions meet in a second shared space.
    """

    def __init__(
        self,
        *,
        cells_dim: int,
        texture_dim: int,
        text_dim: int,
        num_styles: int,
        num_concepts: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(cells_dim, generator)
        # Style has features of its own: off what a picture shows it would be guessed, from the styles that its concept
        # has in training, and wrongly for a pair held out.
        self.style_trunk = Trunk(texture_dim, generator) if num_styles else None
        self.style = Linear(HIDDEN_DIM, num_styles, generator) if num_styles else None
        self.concept = Linear(HIDDEN_DIM, SHARED_DIM, generator) if num_concepts else None
        self.name_trunk = Trunk(text_dim, generator) if num_concepts else None
        self.name = Linear(HIDDEN_DIM, SHARED_DIM, generator) if num_concepts else None
        self.concept_offset = nn.Parameter(torch.zeros(num_concepts, SHARED_DIM))
        self.register_buffer("concept_text", torch.zeros(num_concepts, text_dim))
        self.register_buffer("concept_seen", torch.zeros(num_concepts, dtype=torch.bool))
        self.picture = Linear(HIDDEN_DIM, SHARED_DIM, generator)
        self.caption_trunk = Trunk(text_dim, generator)
        self.caption = Linear(HIDDEN_DIM, SHARED_DIM, generator)
        # Cosines times this are logits; CLIP starts at 14 (Radford et al. 2021), 16 here.
        self.concept_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.caption_scale = nn.Parameter(torch.tensor(math.log(16.0)))

    concept_text: Tensor
    concept_seen: Tensor

    @classmethod
    def of_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> "Readers":
        """Readers whose state has these shapes, to be loaded into."""
        return cls(
            cells_dim=shapes["trunk.mean"][0],
            texture_dim=shapes.get("style_trunk.mean", (0,))[0],
            text_dim=shapes["caption_trunk.mean"][0],
            num_styles=shapes.get("style.bias", (0,))[0],
            num_concepts=shapes["concept_offset"][0],
            generator=torch.Generator(),
        )

    def style_logits(self, texture: Float[Tensor, "B M"], dropout: Dropout = _keep) -> Float[Tensor, "B S"]:
        """Logits of the styles."""
        assert self.style_trunk is not None
        assert self.style is not None
        return self.style(self.style_trunk(texture, dropout))

    def look(self, cells: Float[Tensor, "B K"], dropout: Dropout = _keep) -> Float[Tensor, "B H"]:
        """What the readings of concept and caption start from."""
        return self.trunk(cells, dropout)

    def concept_scores(
        self, x: Float[Tensor, "B H"], dropout: Dropout = _keep, offset: Bool[Tensor, " C"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Scores of all concepts; the offset is added where it is true, by default to the concepts seen in training."""
        assert self.concept is not None
        assert self.name_trunk is not None
        assert self.name is not None
        offset = self.concept_seen if offset is None else offset
        names = self.name(self.name_trunk(self.concept_text, dropout)) + self.concept_offset * offset[:, None]
        return F.normalize(self.concept(x), dim=1) @ F.normalize(names, dim=1).T * self.concept_scale.exp()

    def caption_scores(
        self, x: Float[Tensor, "B H"], texts: Float[Tensor, "Q E"], dropout: Dropout = _keep
    ) -> Float[Tensor, "B Q"]:
        """How well each picture fits each text."""
        texts = self.caption(self.caption_trunk(texts, dropout))
        return F.normalize(self.picture(x), dim=1) @ F.normalize(texts, dim=1).T * self.caption_scale.exp()
