"""Model directories that a run leaves: the newest snapshot and, by a number of stats.jsonl, the best one."""

import difflib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gigagan import checkpoint, dist
from gigagan.commit import settle
from gigagan.errors import CheckpointError
from gigagan.model_files import read_index
from gigagan.models.frozen import TextEncoder
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler
from gigagan.training.grids import SampleGrid
from gigagan.training.state import TrainState

log = logging.getLogger(__name__)


class Best:
    """The lowest value so far of a number (`-NAME`: the highest), as run_dir/best-model itself records it.

    So the two can't differ, wherever a run was killed.
    """

    def __init__(self, by: str, path: Path) -> None:
        self.by, self.path = by, path
        self.name, self.sign = by.removeprefix("-"), -1.0 if by.startswith("-") else 1.0
        self.value = math.inf
        """Of the number times `sign`."""
        self._told = False
        settle(path)
        try:
            recorded = read_index(path).get("provenance", {})
        except CheckpointError:  # there is none, or none that can be read
            return
        if recorded.get("best_by") == by:
            self.value = self.sign * float(recorded["best"])

    def beaten_by(self, row: Mapping[str, float]) -> bool:
        """Whether the tick of this row is better; where it lacks the number, that is told once."""
        if self.name not in row:
            if row and not self._told:
                losses = [name for name in row if name.startswith("Loss/")]
                near = difflib.get_close_matches(self.name, row, n=3) or losses
                log.warning("train.best_by: a tick has no number %s; near it: %s", self.name, ", ".join(near))
                self._told = True
            return False
        value = self.sign * row[self.name]
        return math.isfinite(value) and value < self.value


class Snapshots:
    """Writes run_dir/{model, best-model, grids/}."""

    def __init__(self, run_dir: Path, state: TrainState, encoder: TextEncoder, show: SampleGrid) -> None:
        self.run_dir, self.encoder, self.show = run_dir, encoder, show
        by = state.cfg.train.best_by
        self.best = Best(by, run_dir / "best-model") if by and dist.rank() == 0 else None

    def save(self, state: TrainState, row: Mapping[str, float]) -> None:
        """The state as it is now; also as the best where `row`, its tick, says so. Every rank calls it."""
        G_ema = state.average()
        if dist.rank():
            return
        self._write(self.run_dir / "model", state, G_ema, {})
        if (best := self.best) is not None and best.beaten_by(row):
            self._write(best.path, state, G_ema, {"best_by": best.by, "best": row[best.name]})
            best.value = best.sign * row[best.name]
        folder = self.run_dir / "grids"
        folder.mkdir(exist_ok=True)
        self.show(G_ema).save(folder / f"{state.nimg:09d}.png")

    def _write(self, path: Path, state: TrainState, G_ema: Generator | Upsampler, more: dict[str, Any]) -> None:
        upsampler, generator = (G_ema, None) if isinstance(G_ema, Upsampler) else (None, G_ema)
        checkpoint.save_model(
            path,
            generator,
            self.encoder,
            provenance={"kimg": state.nimg / 1000, "config": state.cfg.model_dump(mode="json"), **more},
            dtype=torch.float32,
            discriminator=state.D,
            upsampler=upsampler,
            notice=state.notice,
        )
