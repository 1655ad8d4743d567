"""Devices and ranks: the one place that knows where a run runs. On one process everything is a no-op."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from gigagan.errors import ConfigError

BUCKET_BYTES = 32 * 2**20
"""Tensors are summed over ranks in flat pieces of about so much, so that their copy stays small."""
PATIENCE = timedelta(minutes=30)
"""A rank waits so long for the others; the run's own watchdog is quicker (train.max_sec_per_step)."""


def available() -> bool:
    """Whether this build of torch can train in several processes."""
    return torch.distributed.is_available()


def rank() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if _started() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _started() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, this process is one of those that torchrun or `gigagan train --nproc` started; alone, nothing happens.

    Raises ConfigError where the environment names other processes, but not where they meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is set but {', '.join(missing)} isn't; start the run with torchrun or --nproc")
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_store(number, count),
        rank=number,
        world_size=count,
        timeout=PATIENCE,
    )
    yield
    # Not after an error: others would see the connection go, and tell of that, before this one has told its own.
    torch.distributed.destroy_process_group()


def _store(number: int, count: int) -> Any:
    """Where ranks find each other, apart for each restart: what a dead attempt left there must not be met again."""
    kept_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    c10d: Any = torch.distributed  # which doesn't say that it exports its stores
    store = c10d.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        count,
        is_master=number == 0 and not kept_by_agent,
        timeout=PATIENCE,
    )
    # On several machines agents count their own restarts, and the counts differ; there
    # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun itself take a new store (docs/scaling.md).
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = c10d.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        torch.distributed.barrier()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over ranks; every rank gives the same shapes in the same order."""
    if world_size() == 1:
        return
    pending = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        pending.append((torch.distributed.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in pending:
        work.wait()
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [p.view_as(tensor) for p, tensor in zip(parts, bucket, strict=True)])


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbors of one dtype, up to BUCKET_BYTES."""
    bucket: list[Tensor] = []
    held_bytes = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or held_bytes > BUCKET_BYTES):
            yield bucket
            bucket, held_bytes = [], 0
        bucket.append(tensor)
        held_bytes += tensor.nbytes
    if bucket:
        yield bucket


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
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} isn't one torch knows; use cpu, cuda, cuda:1 or mps") from None
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(chosen.type, False):
        raise ConfigError(f"device {name!r} isn't on this machine; use cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {name!r} isn't on this machine; it has cuda:0 to cuda:{count - 1}")
    if chosen == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # to each rank its own
    return chosen


def dtype(name: torch.dtype | str | None) -> torch.dtype:
    """The arithmetic of that name to draw in; None = float32. Raises ConfigError where it is none."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    plain = str(name or "float32").removeprefix("torch.")
    if plain not in known:
        raise ConfigError(f"dtype {plain} isn't one to draw in; use float32 or bfloat16")
    return known[plain]


def slow_bfloat16(device: torch.device) -> str:
    """What to say where bfloat16 doesn't pay; empty where it does, and for accelerators, where it always does.

    Without instructions for it a processor takes up to 250 times as long as for float32, and neither flags nor names
    tell. So it is measured: the best of five products of 256 x 256 in each.
    """
    if device.type != "cpu":
        return ""
    best, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other programs run
    for kind in (torch.float32, torch.bfloat16):
        a, seconds = torch.ones(256, 256, dtype=kind), []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - start)
        best[kind] = min(seconds)
    torch.set_num_threads(threads)
    slower = best[torch.bfloat16] / best[torch.float32]
    if slower < 1.2:
        return ""
    return f"on this processor bfloat16 takes {slower:.1f} times as long as float32; use train.dtype=float32"
