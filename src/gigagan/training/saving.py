"""Training states written beside training: the copy is taken at once, a thread brings it to the disk."""

import logging
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from gigagan import checkpoint, dist
from gigagan.config import TrainConfig
from gigagan.errors import CheckpointError
from gigagan.training.state import TrainState

log = logging.getLogger(__name__)

FAILURES = 3
"""So many saves may fail one after the other; a run that can't be kept ends."""


class Saver:
    """One save in flight at most, and one copy in memory. Rank 0 writes."""

    def __init__(self, run_dir: Path, cfg: TrainConfig) -> None:
        self.run_dir = run_dir
        self.cfg = cfg
        self.failures = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        """What is in flight ends first, however the run ends."""
        if self._thread is not None:
            self._thread.join()

    def save(self, state: TrainState) -> None:
        """Begin a save of the state as it is now; waits for the one before. Every rank calls it."""
        self.wait()
        tensors = state.state_dict()
        if dist.rank():
            return
        copy = {part: {n: t.detach().to("cpu", copy=True) for n, t in named.items()} for part, named in tensors.items()}
        meta = {"seed": state.cfg.train.seed, **state.numbers()}
        # Not a daemon: an interpreter that ends waits until the state is whole.
        self._thread = threading.Thread(target=self._write, args=(state.nimg, copy, meta), name="save")
        self._thread.start()

    def check(self) -> None:
        """Tell of a save that failed, at the next step. Raises CheckpointError where several did in a row."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is in flight. Raises as `check`."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is None:
            self.failures = 0
            return
        self.failures += 1
        if not isinstance(error, CheckpointError) or self.failures == FAILURES:
            raise error
        log.warning("%s; training goes on, the next save tries again", error)

    def finish(self) -> None:
        """Until the last save is on the disk. Raises CheckpointError where it isn't."""
        self.failures = FAILURES - 1
        self.wait()

    def _write(self, nimg: int, tensors: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> None:
        try:
            keep, milestone = self.cfg.keep_checkpoints, round(self.cfg.milestone_kimg * 1000)
            checkpoint.save_state(self.run_dir, nimg, tensors, meta, keep=keep, milestone=milestone)
        except BaseException as error:  # told by the thread that trains
            self._error = error
