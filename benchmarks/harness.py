"""Sides of a row, interleaved: workers that take turns, what they report together, and the machine they ran on."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "gigagan-pytorch", "aura-sr", "diffusers", "transformers", "openvino", "numpy")
GEMM_SIDES = (1024, 2048)
IDLE_ENOUGH = 0.9
"""Below this share of idle processor time two threads wait for each other more than they work."""


@dataclass(frozen=True)
class Side:
    """One side of a row: a function that builds a case, in a process of its own."""

    label: str
    function: str
    """module:function in this folder."""
    arguments: dict[str, Any] = field(default_factory=dict)
    keep_memory: bool = True
    """The allocator setting of the gigagan command; off = as the peer comes."""
    imports: tuple[str, ...] = ()
    """Packages whose import isn't counted as memory of the work."""
    arithmetic: str = "float32"
    """Which of the two GEMM peaks it is held against."""


@dataclass
class Result:
    """What a side gave."""

    label: str
    images: int
    """A pass draws, or trains on, so many."""
    parameters: dict[str, int]
    gflop: float
    """Of a pass; 0 = not counted."""
    arithmetic: str
    keep_memory: bool
    passes: list[dict[str, Any]]
    """Every sample: wall and CPU-seconds of the pass and of its parts."""
    peak_mib: float
    """Highest resident memory above that after the imports."""

    @property
    def median_sec(self) -> float:
        return statistics.median(sample["wall_sec"] for sample in self.passes)

    @property
    def min_sec(self) -> float:
        return min(sample["wall_sec"] for sample in self.passes)

    @property
    def sec_per_image(self) -> float:
        return self.median_sec / self.images

    @property
    def gflops(self) -> float:
        """Achieved GFLOP/s, by the median."""
        return self.gflop / self.median_sec

    def part(self, name: str, figure: str = "wall_sec") -> float:
        """Median of a part of the pass."""
        return statistics.median(sample["parts"][name][figure] for sample in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        cpu = [sample["cpu_sec"] for sample in self.passes]
        return asdict(self) | {
            "wall_sec": {"median": self.median_sec, "min": self.min_sec},
            "cpu_sec": {"median": statistics.median(cpu), "min": min(cpu)},
            "sec_per_image": self.sec_per_image,
            "images_per_sec": 1 / self.sec_per_image,
            "gflops": self.gflops,
        }


class WorkerFailed(RuntimeError):
    """A side that ended before it answered, with the end of what it said."""


class Worker:
    """A side at work in its own process, asleep until it is asked for a sample."""

    def __init__(self, side: Side, threads: int) -> None:
        self.side = side
        self.samples: list[dict[str, Any]] = []
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the worker)
        spec = asdict(side) | {"threads": threads}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )
        self.facts: dict[str, Any] = {}
        try:
            self.facts = self._reply()
        except WorkerFailed:
            self.close()
            raise

    def sample(self) -> None:
        """One more pass."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply says why
        self.samples.append(self._reply())

    def result(self) -> Result:
        """All samples so far."""
        return Result(
            label=self.side.label,
            images=self.facts["images"],
            parameters=self.facts["parameters"],
            gflop=self.facts["flops"] / 1e9,
            arithmetic=self.side.arithmetic,
            keep_memory=self.side.keep_memory,
            passes=self.samples,
            peak_mib=max(sample["peak_mib"] for sample in self.samples),
        )

    def close(self) -> None:
        """End it, and wait until its memory is free."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            last = self._said.read().strip().splitlines()[-12:]
            raise WorkerFailed(f"{self.side.label}: ended with {code}\n  " + "\n  ".join(last))
        reply: dict[str, Any] = json.loads(line)
        return reply


@dataclass
class Interleaved:
    """A row's results, the GEMM peak that was measured between them, and how idle the machine was before."""

    results: dict[str, Result]
    gemm_gflops: dict[str, float]
    idle: float
    failed: dict[str, str]

    def share_of_peak(self, result: Result) -> float:
        """Achieved over what matrix products achieve in the same arithmetic."""
        return result.gflops / self.gemm_gflops[result.arithmetic]


def interleave(sides: list[Side], *, threads: int, rounds: int, wait_sec: float) -> Interleaved:
    """Every side once a round, in alternating order, with the GEMM peak before; a side that fails is left out."""
    workers: list[Worker] = []
    failed: dict[str, str] = {}
    gemm = Worker(Side("GEMM", "ours:gemm", {"sides": GEMM_SIDES}), threads)
    try:
        for side in sides:
            try:
                workers.append(Worker(side, threads))
            except WorkerFailed as error:
                failed[side.label] = str(error)
        idle = wait_until_idle(wait_sec)
        for number in range(rounds):
            gemm.sample()
            for worker in list(workers if number % 2 == 0 else reversed(workers)):
                try:
                    worker.sample()
                except WorkerFailed as error:
                    failed[worker.side.label] = str(error)
                    workers.remove(worker)
                    worker.close()
        results = {worker.side.label: worker.result() for worker in workers}
        return Interleaved(results, gemm_peak(gemm.samples), idle, failed)
    finally:
        for worker in [gemm, *workers]:
            worker.close()


def gemm_peak(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Best GFLOP/s of square products by arithmetic: the most the machine has shown in this row."""
    peak: dict[str, float] = {}
    for sample in samples:
        for part, times in sample["parts"].items():
            arithmetic, side = part.split()
            peak[arithmetic] = max(peak.get(arithmetic, 0.0), 2 * int(side) ** 3 / times["wall_sec"] / 1e9)
    return peak


def wait_until_idle(wait_sec: float) -> float:
    """Wait, at most so long, for an idle machine; the share of idle time that was seen last."""
    end = time.monotonic() + wait_sec
    while True:
        idle = _idle_share(2.0)
        if idle >= IDLE_ENOUGH or time.monotonic() >= end:
            return idle
        time.sleep(3)


def _idle_share(seconds: float) -> float:
    """Idle over all processor time of the machine, from /proc/stat."""

    def ticks() -> tuple[int, int]:
        fields = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)  # idle and waiting for a disk

    idle, total = ticks()
    time.sleep(seconds)
    idle_after, total_after = ticks()
    return (idle_after - idle) / max(total_after - total, 1)


def conditions(threads: int, rounds: int) -> dict[str, Any]:
    """What a figure must be read with: machine, versions, commit."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "")
    flags = next((line for line in info if line.startswith("flags")), "").split()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "machine": {
            "cpu": model,
            "cores": os.cpu_count(),
            "memory_gib": round(memory, 1),
            "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **versions},
        "commit": _git("rev-parse", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "src", "benchmarks") else ""),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "threads": threads,
        "rounds": rounds,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
