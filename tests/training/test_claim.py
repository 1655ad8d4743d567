"""One run a directory: another process is refused, and ranks go on from one state."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gigagan import checkpoint, config, dist
from gigagan.errors import CheckpointError, GigaGANError
from gigagan.training import claim
from gigagan.training.loop import train
from gigagan.training.resume import latest_state_of_all
from tests import ranks

CPU = torch.device("cpu")


def run(run_dir: Path, kimg: float) -> None:
    train(config.load("tiny", ["train.batch=8", "train.batch_gpu=8", f"train.total_kimg={kimg}"]), run_dir, device=CPU)


HOLDS = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_never_train_in_one_directory(tmp_path: Path) -> None:
    run(tmp_path, 0.008)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    command = [sys.executable, "-c", HOLDS, str(tmp_path / claim.NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(GigaGANError, match="another process trains there"):
            run(tmp_path, 0.016)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
        other.kill()
    run(tmp_path, 0.016)


def different_states(folder: str) -> str:
    try:
        latest_state_of_all(Path(folder) / str(dist.rank()), CPU)
    except CheckpointError as error:
        return str(error)
    return ""


def test_ranks_that_find_different_states_end(tmp_path: Path) -> None:
    """As behind a file server that lags, or on machines that share no folder."""
    for rank, steps in enumerate(((8, 16), (8,))):
        for nimg in steps:
            checkpoint.save_state(tmp_path / str(rank), nimg, {"G": {"w": torch.ones(1)}}, {}, keep=2)
    told = ranks.run(2, different_states, str(tmp_path))
    assert all("processes find different training states (step-00000008, step-00000016)" in one for one in told)
    checkpoint.save_state(tmp_path / "1", 16, {"G": {"w": torch.ones(1)}}, {}, keep=2)
    assert ranks.run(2, different_states, str(tmp_path)) == ["", ""]
