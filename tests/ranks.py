"""Real processes for tests: ranks that meet over gloo, started in milliseconds from a server that has torch loaded."""

import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from gigagan import config, dist
from gigagan.config import RunConfig

CPU = torch.device("cpu")
os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
torch.set_num_threads(1)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.ranks", "gigagan.training.loop"])

# The smallest run with everything in it: text, attention, filter banks, every loss of the paper.
SPECK = (
    *("generator.resolution=8", "generator.blocks=[1,1]", "generator.num_filters=[2,1]", "generator.channel_max=16"),
    *("discriminator.blocks=[1,1]", "discriminator.channel_max=16", "loss.level_weights=[0.6,0.4]"),
    *("train.batch=8", "train.batch_gpu=2", "train.kimg_per_tick=0.008", "train.max_sec_per_tick=1000"),
    *("train.snapshot_ticks=1000", "loss.r1_interval=4", "generator.mapping_lr_multiplier=0.1"),
)


def speck(*overrides: str) -> RunConfig:
    return config.load("tiny", (*SPECK, *overrides))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start(world: int, target: Callable[..., Any], *args: Any) -> list[BaseProcess]:
    """Ranks that run target(*args); of one alone, a process without others."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    processes = [PROCESSES.Process(target=_rank, args=(where | {"RANK": str(r)}, target, args)) for r in range(world)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], *, seconds: float = 240) -> list[int | None]:
    """Exit codes, -9 for one that was killed; none is left after so many seconds."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def run(world: int, target: Callable[..., Any], *args: Any) -> list[Any]:
    """What target(*args) returns on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start(world, _kept, folder, target, args)
        assert finish(processes) == [0] * world
        return [pickle.loads((Path(folder) / str(r)).read_bytes()) for r in range(world)]


def _rank(environment: dict[str, str], target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    with dist.joined(CPU):
        target(*args)


def _kept(folder: str, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    (Path(folder) / str(dist.rank())).write_bytes(pickle.dumps(target(*args)))
