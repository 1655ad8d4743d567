"""A projected picture on disk: its styles and the prompt whose words go with them."""

from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from gigagan.editing.tensor_file import read_tensor, tensor_bytes
from gigagan.models.latents import Latents
from gigagan.pipeline import Pipeline


@dataclass(frozen=True)
class PointFile:
    """One point; L layers, S style."""

    ws: Float[Tensor, "L S"]
    prompt: str
    model: str
    """Hash of the model that draws it."""

    def as_bytes(self) -> bytes:
        """The file of it."""
        return tensor_bytes("point", self.ws, {"prompt": self.prompt, "model": self.model})

    @classmethod
    def read(cls, path: Path) -> "PointFile":
        """From a file. Raises DataError where it isn't one of a point."""
        ws, said = read_tensor(path, "point", "edit project")
        return cls(ws, said.get("prompt", ""), said.get("model", ""))

    def latents(self, pipe: Pipeline) -> Latents:
        """The point with the words of its prompt."""
        words = pipe.latents([self.prompt], pipe.z([0]))
        return replace(words, ws=self.ws[None].to(words.ws))
