"""Numbers that aren't finite: ranks decide alike whether gradients may move the weights, and when a run goes back.

A bad half step is left out and counted. Ten in a row mean that something stays wrong: the run goes back to its last
state, passes over the pictures since then and, the first time, halves its learning rates.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gigagan import dist
from gigagan.errors import GigaGANError
from gigagan.training.health import gradients_of, length
from gigagan.training.sharding import is_sharded, local
from gigagan.training.state import TrainState
from gigagan.training.stats import spared

BAD_IN_A_ROW = 10
"""So many steps left out one after the other are persistent trouble."""
ROLLBACKS = 3
"""After so many the run stops."""
LATELY_KIMG = 1000.0
"""Only those count that aren't so far behind: a run that got past its trouble is healthy again."""


class Wishes(NamedTuple):
    """What a rank asks of all; one that asks is enough."""

    stop: bool
    tick: bool


class Verdict(NamedTuple):
    """What all ranks do, told by one exchange."""

    good: bool
    """Losses and gradients of every rank are finite."""
    stop: bool
    tick: bool


def exchange(
    optimizers: Sequence[torch.optim.Optimizer], losses: Tensor, extra: Sequence[Tensor], wishes: Wishes
) -> tuple[Verdict, list[Tensor]]:
    """Sum gradients and `extra` over ranks, once an optimizer step; the verdict, and each optimizer's gradient norm.

    `losses` is one number that isn't finite where one of this rank's losses isn't. A sum with such a number isn't
    finite either, whichever rank gave it, so every rank reads the same verdict out of it.
    """
    gradients = [gradients_of(optimizer) for optimizer in optimizers]
    # Those of a sharded layer are summed already; each rank has a part of them, and of the square of their length.
    sharded = [local([g for g in one if is_sharded(g)]) for one in gradients]
    plain = [[g for g in one if not is_sharded(g)] for one in gradients]
    wished = [losses.new_tensor(float(wish)) for wish in wishes]
    told = torch.stack(
        [losses.to(torch.float32), *wished, *(length(one).square().to(losses.device) for one in sharded)]
    )
    dist.add_up([*(g for one in plain for g in one), *extra, told])
    squares = told[1 + len(wishes) :]
    norms = [(square + length(one).square()).sqrt() for square, one in zip(squares, plain, strict=True)]
    loss, stop, tick, *lengths = torch.stack([*told[: 1 + len(wishes)], *norms]).tolist()
    return Verdict(all(map(math.isfinite, [loss, *lengths])), stop > 0, tick > 0), norms


class Guard:
    """Counts the steps that were left out, names them in trouble.jsonl, and says when the run must go back."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "trouble.jsonl"
        self.skipped = 0
        """Steps left out since this process started."""
        self.in_a_row = 0

    def persists(self, good: bool, state: TrainState, broken: Sequence[str]) -> bool:
        """Take note of a step; whether the run must go back, which state.rollbacks then says.

        `broken` names this rank's own numbers that weren't finite. Raises GigaGANError, the report, where going back
        has been tried often enough.
        """
        if good:
            self.in_a_row = 0
            return False
        kimg = state.nimg / 1000
        self.skipped += 1
        self.in_a_row += 1
        if broken or dist.rank() == 0:
            line = {"kimg": kimg, "rank": dist.rank(), "not_finite": list(broken) or "another rank or weights"}
            with spared(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.in_a_row < BAD_IN_A_ROW:
            return False
        self.in_a_row = 0
        lately = [before for before in state.rollbacks if kimg - before < LATELY_KIMG]
        if len(lately) >= ROLLBACKS:
            raise GigaGANError(
                f"numbers weren't finite {BAD_IN_A_ROW} steps in a row at {kimg:.3f} kimg, after going back "
                f"{len(lately)} times (at {', '.join(f'{before:.3f}' for before in lately)} kimg) and halving the "
                f"learning rates; {self.path} names them; lower optim_G.lr and optim_D.lr or look at the data"
            )
        state.rollbacks = [*lately, kimg]
        return True
