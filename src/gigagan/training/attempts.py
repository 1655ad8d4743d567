"""How far each start of a run got, so that one which dies at the same place again and again is told from bad luck.

Whoever starts the run anew (torchrun, --nproc, Slurm, a person), the file in the run directory knows.
"""

import os
from pathlib import Path

from gigagan import dist
from gigagan.errors import GigaGANError

CRASHES = 3
STANDSTILLS = 10
"""So many starts in a row from one state, none of which came to the next: no bad luck either."""
WIDTH = 20
"""Digits of a number of images."""


class Attempts:
    """attempts.txt: a line a start, gone when the run ends well.

    On it the images seen at the start and when the last step began.
    """

    def __init__(self, run_dir: Path, nimg: int) -> None:
        """Raises GigaGANError where the last starts died at the same step, or between the same two states."""
        self.path = run_dir / "attempts.txt"
        text = self.path.read_text(encoding="ascii") if self.path.exists() else ""
        starts = [int(line.split()[0]) for line in text.splitlines()]
        ends = [int(line.split()[-1]) for line in text.splitlines()]
        go_on = f"or go on regardless by deleting {self.path}"
        if len(ends) >= CRASHES and len(set(ends[-CRASHES:])) == 1:
            raise GigaGANError(
                f"the run died {CRASHES} times at the same step ({ends[-1] / 1000:.3f} kimg); the first traceback "
                f"of its output says why. Mend it, {go_on}"
            )
        if starts[-STANDSTILLS:] == [nimg] * STANDSTILLS:
            raise GigaGANError(
                f"the run died {STANDSTILLS} times after {nimg / 1000:.3f} kimg, before its next state was saved; "
                f"save more often (train.checkpoint_ticks, train.kimg_per_tick), {go_on}"
            )
        dist.barrier()  # every rank has read it
        if dist.rank() == 0:
            self._line = f"{nimg:0{WIDTH}d} "
            self._place = len(text)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            self.begins(nimg)

    def begins(self, nimg: int) -> None:
        """A step begins. What is written outlives the process, however it dies."""
        if dist.rank() == 0:
            os.pwrite(self._file, f"{self._line}{nimg:0{WIDTH}d}\n".encode(), self._place)

    def ended(self) -> None:
        """The run stopped of its own accord."""
        if dist.rank() == 0:
            os.close(self._file)
            self.path.unlink(missing_ok=True)
