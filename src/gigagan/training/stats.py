"""Scalars of a run: averaged over a tick, printed as a line, written to stats.jsonl and TensorBoard."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gigagan import dist
from gigagan.errors import CheckpointError, GigaGANError, MissingExtra

T = TypeVar("T")
log = logging.getLogger(__name__)


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Around a file that a run can do without: a disk that takes no more costs that file and is told, not the run."""
    try:
        yield
    except OSError as error:
        log.warning("%s: not written (%s); the run goes on without", path, error.strerror or error)
    except CheckpointError as error:
        log.warning("%s; the run goes on without", error)


class Stats:
    """Collects tensors without waiting for them; a tick turns them into numbers."""

    def __init__(self, run_dir: Path, *, total_kimg: float) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboard", "train") from None
        self.path = run_dir / "stats.jsonl"
        self.total_kimg = total_kimg
        self.writer = SummaryWriter(str(run_dir / "tensorboard")) if dist.rank() == 0 else None
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.tick_start = time.monotonic()
        self.cpu_start = time.process_time()
        self.waited_sec = 0.0
        """Spent waiting for data since the tick began."""
        self.tick_nimg = -1

    def add(self, values: dict[str, Tensor]) -> None:
        """Values of one half step."""
        for name, value in values.items():
            self.values[name].append(value)

    def start(self, nimg: int) -> None:
        """The first tick begins here."""
        self.tick_nimg = nimg
        self.waited_sec = 0.0
        self.tick_start, self.cpu_start = time.monotonic(), time.process_time()

    def waited_for(self, stream: Iterator[T]) -> T:
        """Its next."""
        asked = time.monotonic()
        batch = next(stream)
        self.waited_sec += time.monotonic() - asked
        return batch

    def forget(self, nimg: int) -> None:
        """The run went back: a new tick begins here, without what was added."""
        self.values.clear()
        self.start(nimg)

    def cpu_sec(self) -> float:
        """This process's since the last tick."""
        return time.process_time() - self.cpu_start

    def images(self, nimg: int) -> int:
        """Images since the last tick."""
        return nimg - self.tick_nimg

    def tick_ended(self, nimg: int, kimg_per_tick: float, max_sec_per_tick: float) -> bool:
        """Whether a tick's images or seconds are over."""
        return self.images(nimg) >= kimg_per_tick * 1000 or time.monotonic() - self.tick_start >= max_sec_per_tick

    def tick(self, nimg: int, extra: dict[str, float]) -> dict[str, float]:
        """Average over ranks, write and print the tick that ends now; every rank calls it, the first one writes.

        Raises GigaGANError when a loss isn't finite: the run stops before it spoils its checkpoints.
        """
        seconds, images = max(time.monotonic() - self.tick_start, 1e-9), self.images(nimg)
        row = self._averages()
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            raise GigaGANError(
                f"{', '.join(broken)} isn't finite at {nimg / 1000:.3f} kimg; resume from the last checkpoint "
                "with a lower optim_G.lr and optim_D.lr"
            )
        if "Scores/mismatched" in row:
            row["Health/match_gap"] = row["Scores/real"] - row["Scores/mismatched"]
        if "Scores/gen" in row:
            row["Health/real_gap"] = row["Scores/real"] - row["Scores/gen"]
        images_per_sec = images / seconds
        row |= {
            "Progress/kimg": nimg / 1000,
            "Timing/images_per_sec": images_per_sec,
            "Timing/waiting_for_data": self.waited_sec / seconds,
            "Timing/sec_per_kimg": 1000 * seconds / max(images, 1),
            **extra,
        }
        if self.writer is not None:
            with spared(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            with spared(Path(self.writer.log_dir)):
                for name, value in row.items():
                    self.writer.add_scalar(name, value, global_step=nimg)
                self.writer.flush()
            self._print(row, images_per_sec)
        self.values.clear()
        self.start(nimg)
        return row

    def _averages(self) -> dict[str, float]:
        """Of each name, over all its values on all ranks."""
        sums = {name: torch.tensor([sum(map(float, values)), len(values)]) for name, values in self.values.items()}
        if sums:
            home = next(iter(self.values.values()))[0].device
            together = torch.stack(list(sums.values())).to(home)
            dist.add_up([together])
            sums = dict(zip(sums, together, strict=True))
        return {name: float(total / count) for name, (total, count) in sums.items()}

    def _print(self, row: dict[str, float], images_per_sec: float) -> None:
        left = max(self.total_kimg - row["Progress/kimg"], 0) * 1000 / max(images_per_sec, 1e-9)
        hours, minutes = divmod(int(left) // 60, 60)
        losses = "  ".join(f"{n.removeprefix('Loss/')} {v:.3f}" for n, v in row.items() if n.startswith("Loss/"))
        print(
            f"kimg {row['Progress/kimg']:.3f}/{self.total_kimg:g}  {images_per_sec:.1f} img/s  "
            f"ETA {hours}h{minutes:02d}m  {losses}",
            flush=True,
        )

    def close(self) -> None:
        """Let go of the files."""
        if self.writer is not None:
            self.writer.close()
