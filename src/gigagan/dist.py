"""Devices and ranks: the one place that knows where a run runs. On one process everything is a no-op."""

import torch
from torch import Tensor

from gigagan.errors import ConfigError


def rank() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if _started() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _started() else 1


def gather(x: Tensor) -> Tensor:
    """Rows of every rank, one after the other, without gradient; ranks may have different numbers of rows."""
    if world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    torch.distributed.all_gather(counts, torch.tensor([len(x)], device=x.device))
    longest = int(torch.stack(counts).max())
    x = x.detach()
    padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def _started() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` = the first accelerator, else the processor.

    Raises ConfigError where this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} isn't one torch knows; use cpu, cuda, cuda:1 or mps") from None
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(chosen.type, False):
        raise ConfigError(f"device {name!r} isn't on this machine; use cpu")
    return chosen
