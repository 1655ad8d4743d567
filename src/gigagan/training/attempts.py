"""How far each start of a run got, so that one which dies at the same place again and again is told from bad luck.

Whoever starts the run anew (torchrun, --nproc, Slurm, a person), the file in the run directory knows.
"""

import os
from pathlib import Path

from gigagan import dist
from gigagan.errors import GigaGANError

CRASHES = 3
WIDTH = 20
"""A line is a number of this many digits: how many images were seen when the last step began."""


class Attempts:
    """attempts.txt: a line a start, gone when the run ends well."""

    def __init__(self, run_dir: Path, nimg: int) -> None:
        """Raises GigaGANError where the last three starts died at the same step."""
        self.path = run_dir / "attempts.txt"
        lines = self.path.read_text(encoding="ascii").split() if self.path.exists() else []
        last = lines[-CRASHES:]
        if len(last) == CRASHES and len(set(last)) == 1:
            raise GigaGANError(
                f"the run died {CRASHES} times at the same step ({int(last[0]) / 1000:.3f} kimg); the first traceback "
                f"of its output says why. Mend it, or go on regardless by deleting {self.path}"
            )
        dist.barrier()  # every rank has read it
        if dist.rank() == 0:
            self._place = len(lines) * (WIDTH + 1)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            self.begins(nimg)

    def begins(self, nimg: int) -> None:
        """A step begins. What is written outlives the process, however it dies."""
        if dist.rank() == 0:
            os.pwrite(self._file, f"{nimg:0{WIDTH}d}\n".encode(), self._place)

    def ended(self) -> None:
        """The run stopped of its own accord."""
        if dist.rank() == 0:
            os.close(self._file)
            self.path.unlink(missing_ok=True)
