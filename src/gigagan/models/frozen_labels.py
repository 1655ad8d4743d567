"""Conditions that aren't text, behind the text encoders' protocol: the class of a picture, or nothing at all.

A class is one token, its one-hot vector, which T projects to an embedding; an unconditional model gets a token of
width 0. Axes: B prompts, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from gigagan.errors import ConfigError, PromptError
from gigagan.models.frozen_files import write_config
from gigagan.models.frozen_text import TextFeatures


class ClassNames:
    """Names of classes to one-hot vectors. Raises PromptError for a name that it doesn't know."""

    name = "classes"
    max_tokens = 1

    def __init__(self, classes: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        """Raises ConfigError for fewer than two names, or for one that comes twice."""
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ConfigError(f"{len(classes)} classes, {len(set(classes))} distinct; expected at least 2, each once")
        self.classes = tuple(classes)
        self.feature_dim = len(classes)
        self.device = torch.device(device)
        self._place = {name: i for i, name in enumerate(self.classes)}

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """A token for each class name."""
        if unknown := [prompt for prompt in prompts if prompt not in self._place]:
            some = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            raise PromptError(f"no class {unknown[0]!r}; this model draws {len(self.classes)} classes: {some}")
        index = torch.tensor([self._place[prompt] for prompt in prompts], device=self.device)
        tokens = F.one_hot(index, len(self.classes)).to(torch.float32)[:, None]
        return TextFeatures(tokens, torch.ones_like(index, dtype=torch.bool)[:, None], torch.zeros_like(index))

    def count_tokens(self, prompt: str) -> int:
        """A class is one token."""
        return 1

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder/config.json with the names in order."""
        write_config(directory / "text_encoder", {"encoder": self.name, "classes": list(self.classes)})


class Unconditional:
    """No condition: whatever comes is a token of width 0."""

    name = "none"
    max_tokens = 1
    feature_dim = 0

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Nothing, once a prompt."""
        B = len(prompts)
        mask = torch.ones(B, 1, dtype=torch.bool, device=self.device)
        index = torch.zeros(B, dtype=torch.long, device=self.device)
        return TextFeatures(torch.zeros(B, 1, 0, device=self.device), mask, index)

    def count_tokens(self, prompt: str) -> int:
        """Nothing is ever cut."""
        return 1

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder/config.json, which is all there is."""
        write_config(directory / "text_encoder", {"encoder": self.name})
