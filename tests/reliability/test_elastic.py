"""Row C of the fault matrix: ranks that are killed, hang or crash, and launchers that die."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gigagan.checkpoint import latest_state
from tests.ranks import SPECK

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

STEPS = 40
SAVES = (*SPECK, f"train.total_kimg={STEPS * 8 / 1000}", "train.keep_checkpoints=1")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += ["--max-restarts", "3", "--monitor-interval", "0.2", "-m", "gigagan"]
OURS = [sys.executable, "-m", "gigagan"]


def sizes(ci: int, full: int) -> pytest.MarkDecorator:
    """How often, in CI and in `make matrix`."""
    full_size = pytest.param(full, id="full", marks=[pytest.mark.matrix, pytest.mark.timeout(7200)])
    return pytest.mark.parametrize("count", [pytest.param(ci, id="ci"), full_size])


class Run:
    """`gigagan train` in processes of its own."""

    def __init__(self, run_dir: Path, *overrides: str, program: list[str] = OURS, processes: int = 2) -> None:
        run_dir.mkdir()
        self.run_dir, self.attempts, self.told = run_dir, run_dir / "attempts.txt", run_dir / "told"
        arguments = ["train", "tiny", *SAVES, *overrides, "--run-dir", str(run_dir), "--device", "cpu"]
        arguments += ["--nproc", str(processes)] if program is not TORCHRUN else []
        with self.told.open("wb") as told:
            self.launcher = subprocess.Popen(
                [*program, *arguments], stdout=told, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.seen: set[int] = set()

    def ranks(self) -> list[int]:
        """Process ids of what runs below the launcher, itself aside."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
        found, rest = [], [self.launcher.pid]
        while rest:
            children = [pid for pid, parent in parents.items() if parent == rest[0]]
            found, rest = found + children, rest[1:] + children
        self.seen.update(found)
        return found

    def starts(self) -> list[int]:
        """How far each start got, in images."""
        lines = self.attempts.read_text().splitlines() if self.attempts.exists() else []
        return [int(line.split()[-1]) for line in lines]

    def until(self, condition: Callable[[], Any], *, seconds: float = 90) -> float:
        """Wait for it; the seconds that took."""
        begin = time.monotonic()
        while not condition():
            assert self.launcher.poll() is None or condition(), self.output()
            assert time.monotonic() - begin < seconds, self.output()
            time.sleep(0.02)
        return time.monotonic() - begin

    def under_way(self, step: int = 3) -> None:
        """Until so many steps are done."""
        self.until(lambda: self.starts() and self.starts()[-1] >= step * 8)
        self.ranks()

    def end(self, seconds: float = 120) -> int:
        try:
            return self.launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output()) from None

    def output(self) -> str:
        return self.told.read_text(errors="replace")[-6000:]

    def orphans(self) -> list[int]:
        """What still runs of all that was ever below the launcher."""
        alive = []
        for pid in self.seen:
            try:
                state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                alive.append(pid)
        return alive


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    state = latest_state(run_dir)
    assert state is not None
    assert state.nimg == STEPS * 8
    return {f"{part}: {name}": t for part, named in state.tensors.items() for name, t in named.items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = Run(tmp_path_factory.mktemp("unbroken") / "run")
    assert run.end() == 0, run.output()
    assert not run.attempts.exists()
    return tensors(run.run_dir)


@sizes(2, 30)
@pytest.mark.parametrize("program", [OURS, TORCHRUN], ids=["nproc", "torchrun"])
def test_c1_a_killed_rank(tmp_path: Path, unbroken: dict[str, torch.Tensor], count: int, program: list[str]) -> None:
    """All go on at the first restart, in 15 s, and the run ends as if nothing had been."""
    draw = random.Random(count)
    slowest = 0.0
    for k in range(count if program is OURS else max(count // 3, 1)):
        run = Run(tmp_path / str(k), program=program)
        run.under_way()
        time.sleep(draw.uniform(0, 2))
        before = len(run.starts())
        ranks = [pid for pid in run.ranks() if b"--run-dir" in (Path("/proc") / str(pid) / "cmdline").read_bytes()]
        os.kill(draw.choice(ranks), signal.SIGKILL)
        slowest = max(slowest, run.until(lambda run=run, before=before: len(run.starts()) > before))
        assert run.end() == 0, run.output()
        assert len(re.findall(r"all ranks start anew", run.output())) == (program is OURS)
        assert_equal(tensors(run.run_dir), unbroken)
        assert run.orphans() == []
        shutil.rmtree(run.run_dir)
    print(f"slowest recovery: {slowest:.1f} s")
    assert slowest <= 15


@sizes(1, 10)
def test_c2_a_rank_that_hangs(tmp_path: Path, unbroken: dict[str, torch.Tensor], count: int) -> None:
    for k in range(count):
        run = Run(tmp_path / str(k), "train.max_sec_per_step=6")
        run.under_way()
        os.kill(run.ranks()[k % 2], signal.SIGSTOP)
        seconds = run.until(lambda run=run: "start anew" in run.output())
        assert 4 < seconds <= 6 + 5
        assert "Timeout (0:00:06)!" in run.output()
        assert "in exchange" in run.output()  # the stack of the one that waited
        assert run.end() == 0
        assert_equal(tensors(run.run_dir), unbroken)
        assert run.orphans() == []


def killed(run: Run) -> None:
    run.launcher.kill()
    run.end()


def terminated(run: Run) -> None:
    run.launcher.terminate()
    assert run.end() == 143
    state = latest_state(run.run_dir)
    assert state is not None
    assert 0 < state.nimg < STEPS * 8
    assert run.starts() == []  # it ended well


def interrupted_twice(run: Run) -> None:
    run.launcher.send_signal(signal.SIGINT)
    run.launcher.send_signal(signal.SIGINT)
    assert run.end() == 130


@sizes(1, 7)
@pytest.mark.parametrize("kill", [killed, terminated, interrupted_twice])
def test_c3_nothing_is_left_behind(tmp_path: Path, count: int, kill: Callable[[Run], None]) -> None:
    for k in range(count):
        before = set(os.listdir("/dev/shm"))
        run = Run(tmp_path / str(k), "data.num_workers=1", "train.total_kimg=8")
        run.under_way()
        assert len(run.seen) >= 4  # two ranks, a reader each
        begin = time.monotonic()
        kill(run)
        while run.orphans() and time.monotonic() - begin < 10:
            time.sleep(0.05)
        assert run.orphans() == []
        while set(os.listdir("/dev/shm")) - before and time.monotonic() - begin < 10:
            time.sleep(0.05)
        assert set(os.listdir("/dev/shm")) <= before
        assert run.launcher.poll() is not None


CRASHING = """
import os, sys
from gigagan.training import loop

real = loop.generator_step

def step(state, batch, **keys):
    if os.environ["RANK"] == "1" and state.nimg >= 8 * 5:
        raise KeyError("the cause")
    return real(state, batch, **keys)

loop.generator_step = step
from gigagan.cli import main
main(sys.argv[1:])
"""


@sizes(1, 5)
def test_c4_c5_an_exception_on_one_rank(tmp_path: Path, count: int) -> None:
    """All ranks end, its traceback comes first; the third time at the same step is the last."""
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import logging, os, pathlib, sys\n"
        "from gigagan.launch import launch\n"
        "logging.basicConfig(format='%(message)s')\n"
        "place = pathlib.Path(sys.argv[sys.argv.index('--run-dir') + 1]) / 'attempts.txt'\n"
        "arguments = sys.argv[1:sys.argv.index('--nproc')]\n"
        f"sys.exit(launch([sys.executable, {str(script)!r}, *arguments], 2, environment=os.environ,\n"
        "    progress=lambda: place.read_bytes() if place.exists() else b''))\n"
    )
    for k in range(count):
        run = Run(tmp_path / str(k), program=[sys.executable, str(driver)])
        begin = time.monotonic()
        assert run.end() == 2
        assert time.monotonic() - begin < 3 * 30
        text = run.told.read_text()
        assert text.count("KeyError: 'the cause'") == 3
        errors = re.findall(r"^(?:\[rank\d\]: )?(\w+(?:\.\w+)*(?:Error|Exception))\b", text, re.MULTILINE)
        assert errors[0] == "KeyError"
        assert "the run died 3 times at the same step (0.040 kimg)" in text
        assert run.orphans() == []


def test_c5_a_program_that_never_comes_to_a_step(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ImportError('no driver')")
    driver = (
        "import os, sys; from gigagan.launch import launch\n"
        "sys.exit(launch([sys.executable, sys.argv[1]], 2, environment=os.environ, progress=lambda: 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", driver, tmp_path / "broken.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "3 attempts in a row came to no step" in done.stderr


def test_a_users_mistake_is_told_and_not_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "data.path=/nowhere")
    assert run.end() == 2
    assert "no such file or folder" in run.output()
    assert "start anew" not in run.output()


def test_c4_a_mistake_that_one_rank_met_ends_all(tmp_path: Path) -> None:
    """The others would wait for it for half an hour."""
    program = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(600)"
    driver = (
        "import os, sys; from gigagan import launch; launch.REFUSED_SEC = 1.0\n"
        "sys.exit(launch.launch([sys.executable, '-c', sys.argv[1]], 2, environment=os.environ, progress=lambda: 0))"
    )
    done = subprocess.run([sys.executable, "-c", driver, program], check=False, timeout=60)
    assert done.returncode == 2
