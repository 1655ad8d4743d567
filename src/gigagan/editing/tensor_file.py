"""A tensor in a file of its own, with what it is and which model it belongs to (safetensors)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gigagan.errors import ConfigError, DataError
from gigagan.pipeline import Pipeline

NAME = "values"
VERSION = "gigagan-1"


def tensor_bytes(kind: str, values: Tensor, said: Mapping[str, str]) -> bytes:
    """The file of a tensor of some kind, float32."""
    return save({NAME: values.to("cpu", torch.float32).contiguous()}, {**said, "format": f"{VERSION} {kind}"})


def read_tensor(path: Path, kind: str, command: str) -> tuple[Tensor, dict[str, str]]:
    """The tensor and what was said of it. Raises DataError, naming the command that writes such files, for others."""
    with path.open("rb"):
        pass  # what the system says of a path it says here, with the path in it
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, str] = file.metadata() or {}
            values = file.get_tensor(NAME)
    except SafetensorError:
        said = {}
    if said.get("format") != f"{VERSION} {kind}" or values.ndim != 2:
        raise DataError(f"{path}: holds no {kind}; expected a file of gigagan {command}")
    return values, said


def check_model(path: Path, model: str, pipe: Pipeline) -> None:
    """Raises ConfigError for a file made with another model: a step or a point means nothing there."""
    if model != pipe.model_hash:
        raise ConfigError(f"{path}: belongs to model {model!r}, not to {pipe.model_hash!r}; give its --model")
