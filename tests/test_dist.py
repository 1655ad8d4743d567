"""Gathering over ranks, in two real processes."""

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from gigagan import dist
from gigagan.errors import ConfigError


def gather_rows(rank: int, folder: str) -> None:
    """Rank 0 has two rows, rank 1 has three."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = torch.full((2 + rank, 3), float(rank)) + torch.arange(2 + rank)[:, None] / 10
    torch.save(dist.gather(rows.requires_grad_()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.randn(3, 2)
    assert dist.gather(rows) is rows


def test_rows_of_every_rank_in_order_however_many(tmp_path: Path) -> None:
    multiprocessing.spawn(gather_rows, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert first[:, 0].tolist() == torch.tensor([0, 0.1, 1, 1.1, 1.2]).tolist()
    assert not first.requires_grad


def test_bfloat16_is_measured_on_processors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dist.slow_bfloat16(torch.device("cuda")) == ""
    threads = torch.get_num_threads()

    def clock(seconds: list[float]) -> None:  # read before and after each of five products in float32, then bfloat16
        moments = iter([moment for each in seconds for moment in [0.0, each] * 5])
        monkeypatch.setattr(dist.time, "perf_counter", lambda: next(moments))

    clock([1.0, 0.5])
    assert dist.slow_bfloat16(torch.device("cpu")) == ""
    clock([1.0, 40.0])
    told = "on this processor bfloat16 takes 40.0 times as long as float32; use train.dtype=float32"
    assert dist.slow_bfloat16(torch.device("cpu")) == told
    assert torch.get_num_threads() == threads


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert dist.device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"device 'cuda:7' isn't on this machine; it has cuda:0 to cuda:1"):
        dist.device("cuda:7")
