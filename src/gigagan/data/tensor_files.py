"""Safetensors files, as readable as their user's other files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gigagan.data.places import whole


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """All of a file or nothing, in place of what was there; its folder is made. Raises as `write_tensors`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Raises OSError where there is no room or the folder can't be written."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # its own class, for a full disk as well
        raise OSError(f"{path.name}: {error}") from None
    path.chmod(mode)  # safetensors writes for the owner alone
