"""Small networks over frozen features that read a picture's style, its concept and its caption.

They learn from real pictures only (fit.py). Axes: B pictures, K features, C concepts, S styles, Q texts, E text
features, D shared space.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN_DIM = 1024
SHARED_DIM = 256
Dropout = Callable[[Tensor], Tensor]


def _keep(x: Tensor) -> Tensor:
    return x


class Tower(nn.Module):
    """Standardized features, one hidden layer, a linear map."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        # He's gain for the hidden layer; drawn here because nn.Linear would draw from the global state.
        self.hidden = nn.Parameter(torch.randn(hidden_dim, in_dim, generator=generator) * math.sqrt(2 / in_dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_dim))
        self.out = nn.Parameter(torch.randn(out_dim, hidden_dim, generator=generator) / math.sqrt(hidden_dim))
        self.out_bias = nn.Parameter(torch.zeros(out_dim))

    mean: Tensor
    scale: Tensor

    def standardize(self, x: Float[Tensor, "N K"]) -> None:
        """Take mean and deviation from these features."""
        self.mean.copy_(x.mean(dim=0))
        self.scale.copy_(1 / (x.std(dim=0) + 0.1 * x.std() + 1e-6))  # A channel that is always 0 stays small.

    def forward(self, x: Float[Tensor, "B K"], dropout: Dropout = _keep) -> Float[Tensor, "B D"]:
        x = dropout((x - self.mean) * self.scale)
        x = dropout(F.relu(F.linear(x, self.hidden, self.hidden_bias)))
        return F.linear(x, self.out, self.out_bias)


class Readers(nn.Module):
    """Style logits, concept scores and caption scores of pictures, given their features.

    A concept's vector is made from the text of its name, plus an offset learned for the concepts seen in training, so
    that one never seen can be ranked among the others. Pictures and captions meet in a second shared space.
    """

    def __init__(
        self, *, feature_dim: int, text_dim: int, num_styles: int, num_concepts: int, generator: torch.Generator
    ) -> None:
        super().__init__()

        def tower(in_dim: int, out_dim: int) -> Tower:
            return Tower(in_dim, HIDDEN_DIM, out_dim, generator)

        self.style = tower(feature_dim, num_styles) if num_styles else None
        self.concept = tower(feature_dim, SHARED_DIM) if num_concepts else None
        self.concept_name = tower(text_dim, SHARED_DIM) if num_concepts else None
        self.concept_offset = nn.Parameter(torch.zeros(num_concepts, SHARED_DIM))
        self.register_buffer("concept_text", torch.zeros(num_concepts, text_dim))
        self.register_buffer("concept_seen", torch.zeros(num_concepts, dtype=torch.bool))
        self.picture = tower(feature_dim, SHARED_DIM)
        self.caption = tower(text_dim, SHARED_DIM)
        # Cosines times this are logits; CLIP starts at 14 (Radford et al. 2021), 16 here.
        self.concept_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.caption_scale = nn.Parameter(torch.tensor(math.log(16.0)))

    concept_text: Tensor
    concept_seen: Tensor

    @classmethod
    def of_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> "Readers":
        """Readers whose state has these shapes, to be loaded into."""
        return cls(
            feature_dim=shapes["picture.mean"][0],
            text_dim=shapes["caption.mean"][0],
            num_styles=shapes.get("style.out_bias", (0,))[0],
            num_concepts=shapes["concept_offset"][0],
            generator=torch.Generator(),
        )

    def style_logits(self, cells: Float[Tensor, "B K"], dropout: Dropout = _keep) -> Float[Tensor, "B S"]:
        """Logits of the styles."""
        assert self.style is not None
        return self.style(cells, dropout)

    def concept_scores(
        self, cells: Float[Tensor, "B K"], dropout: Dropout = _keep, offset: Bool[Tensor, " C"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Scores of all concepts; the offset is added where it is true, by default to the concepts seen in training."""
        assert self.concept is not None
        assert self.concept_name is not None
        x = F.normalize(self.concept(cells, dropout), dim=1)
        offset = self.concept_seen if offset is None else offset
        names = self.concept_name(self.concept_text, dropout) + self.concept_offset * offset[:, None]
        return x @ F.normalize(names, dim=1).T * self.concept_scale.exp()

    def caption_scores(
        self, cells: Float[Tensor, "B K"], texts: Float[Tensor, "Q E"], dropout: Dropout = _keep
    ) -> Float[Tensor, "B Q"]:
        """How well each picture fits each text."""
        x = F.normalize(self.picture(cells, dropout), dim=1)
        return x @ F.normalize(self.caption(texts, dropout), dim=1).T * self.caption_scale.exp()
