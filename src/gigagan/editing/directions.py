"""Directions of w that nobody named: where it varies, and what the layers answer to; named and kept in a file.

Axes: N samples, K directions, S style, I channels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gigagan.editing.tensor_file import read_tensor, tensor_bytes
from gigagan.errors import ConfigError, DataError
from gigagan.exported import check_weights
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.generator import Generator


@dataclass(frozen=True)
class Directions:
    """Steps of w with names; a step is one standard deviation of the samples along its direction."""

    steps: Float[Tensor, "K S"]
    names: list[str]
    model: str = ""
    """Hash of the model they belong to; a direction means nothing in another."""

    def named(self, names: Mapping[int, str]) -> "Directions":
        """The same with other names at some places. Raises ConfigError for a place or a name that can't be."""
        renamed = list(self.names)
        for place, name in names.items():
            if not 0 <= place < len(renamed):
                raise ConfigError(f"no direction {place}; there are 0 to {len(renamed) - 1}")
            if not name.strip():
                raise ConfigError(f"the name of direction {place} is empty; give one")
            renamed[place] = name
        for name in renamed:
            if renamed.count(name) > 1:
                raise ConfigError(f"two directions are named {name!r}; give each its own name")
        return replace(self, names=renamed)

    def step(self, name: str) -> Float[Tensor, " S"]:
        """The step of a name. Raises ConfigError where there is none."""
        if name not in self.names:
            raise ConfigError(f"no direction {name!r}; there are {', '.join(map(repr, self.names))}")
        return self.steps[self.names.index(name)]

    def as_bytes(self) -> bytes:
        """The file of them."""
        return tensor_bytes("directions", self.steps, {"names": json.dumps(self.names), "model": self.model})

    @classmethod
    def read(cls, path: Path) -> "Directions":
        """From a file. Raises DataError where it isn't one of directions."""
        steps, said = read_tensor(path, "directions", "edit directions")
        try:
            names = [str(name) for name in json.loads(said["names"])]
        except (KeyError, ValueError, TypeError):
            names = []
        if len(names) != len(steps):
            raise DataError(f"{path}: has {len(names)} names for {len(steps)} directions; find them anew")
        return cls(steps, names, said.get("model", ""))


def principal_directions(w: Float[Tensor, "N S"], count: int) -> Float[Tensor, "K S"]:
    """The principal components of w, that of the largest variance first (GANSpace, Harkonen et al. 2020)."""
    centered = (w - w.mean(dim=0)).double()
    _, _, axes = torch.linalg.svd(centered, full_matrices=False)
    return _in_deviations(axes[:count], centered).to(w.dtype)


def style_factors(generator: Generator, w: Float[Tensor, "N S"], count: int) -> Float[Tensor, "K S"]:
    """The eigenvectors of A^T A, A the affine layers that modulate, largest first (Shen & Zhou 2021, Eq. 5).

    What moves the kernels of all layers the most for a step of w; `w` only says how long a step is.
    """
    check_weights(generator, "style_factors")
    affines = [module.to_scale for module in generator.synthesis.modules() if isinstance(module, AdaptiveConv)]
    A = torch.cat([affine.weight.double() * affine.gain for affine in affines])  # [I of all layers, S]
    _, axes = torch.linalg.eigh(A.T @ A)  # ascending
    return _in_deviations(axes.T.flip(0)[:count], (w - w.mean(dim=0)).double()).to(w.dtype)


def _in_deviations(axes: Float[Tensor, "K S"], centered: Float[Tensor, "N S"]) -> Float[Tensor, "K S"]:
    """Unit vectors as steps of one standard deviation, the largest entry positive: a sign must not depend on chance."""
    deviation = (centered @ axes.T).std(dim=0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return axes * deviation[:, None] * largest.sign()


def numbered(steps: Float[Tensor, "K S"], prefix: str, model: str) -> Directions:
    """Directions that go by a number until somebody looked at them."""
    names: Sequence[str] = [f"{prefix}-{n}" for n in range(len(steps))]
    return Directions(steps, list(names), model)
