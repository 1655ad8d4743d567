"""Row B of the fault matrix: a run in parts is the unbroken one, and the number of ranks changes nothing."""

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gigagan.checkpoint import latest_state
from gigagan.training import loop
from tests.ranks import CPU, finish, run, speck, start

BATCH = 8
FACTORS = list(itertools.product((False, True), (0, 2), (1, 2), (1, 2)))  # augmented, readers, ranks, accumulation
EACH_PAIR = [f for k, f in enumerate(FACTORS) if k.bit_count() % 2 == 0]  # half of them cover every pair, and triple


def trained(run_dir: str, steps: int, *overrides: str) -> list[list[str]]:
    """Run to so many steps; the captions of each step on this rank."""
    captions: dict[int, list[str]] = {}
    real = loop.discriminator_step

    def step(state: Any, batch: Any, **keys: Any) -> Any:
        captions.setdefault(state.place, []).extend(batch.captions)
        return real(state, batch, **keys)

    loop.discriminator_step = step  # type: ignore[assignment]
    loop.train(speck(f"train.total_kimg={steps * BATCH / 1000}", *overrides), Path(run_dir), device=CPU)
    return list(captions.values())


def losses(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name.startswith(("Loss/", "Scores/"))} for row in rows]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    state = latest_state(run_dir)
    assert state is not None
    return {f"{part}: {name}": t for part, named in state.tensors.items() for name, t in named.items()}


def cases() -> list[Any]:
    """Half of all in CI, which covers every pair of factors; the rest in `make matrix`."""
    return [
        pytest.param(*f, id="-".join(map(str, f)), marks=[] if f in EACH_PAIR else pytest.mark.matrix) for f in FACTORS
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("augmented", "readers", "world", "accumulation"), cases())
def test_b1_a_killed_run_ends_as_the_unbroken_one(
    tmp_path: Path, augmented: bool, readers: int, world: int, accumulation: int
) -> None:
    steps = 24
    overrides = (
        f"augment.prob={0.5 * augmented}",
        f"data.num_workers={readers}",
        f"train.batch_gpu={BATCH // world // accumulation}",
    )
    run(world, trained, str(tmp_path / "whole"), steps, *overrides)
    parts = tmp_path / "parts"
    ranks = start(world, trained, str(parts), steps, *overrides)
    attempts = parts / "attempts.txt"
    end = time.monotonic() + 120
    while not attempts.exists() or int(attempts.read_text() or 0) < steps // 2 * BATCH:
        assert time.monotonic() < end
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
    assert finish(ranks) == [-9] * world
    assert int(attempts.read_text()) < steps * BATCH, "it wasn't killed on its way"
    run(world, trained, str(parts), steps, *overrides)
    whole, resumed = tensors(tmp_path / "whole"), tensors(parts)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    # Losses, too, of the steps from the state on.
    assert losses(tmp_path / "whole")[-8:] == losses(parts)[-8:]


@pytest.mark.slow
def test_b3_one_two_and_four_ranks_see_and_learn_the_same(tmp_path: Path) -> None:
    """The same samples, and losses within 1e-5 over the first 20 steps; minibatch-std groups are of global order."""
    overrides = ("discriminator.minibatch_std=2", "train.batch_gpu=2")
    seen, found = {}, {}
    for world in (1, 2, 4):
        ranks = run(world, trained, str(tmp_path / str(world)), 20, *overrides)
        seen[world] = [[text for rank in ranks for text in rank[k]] for k in range(20)]
        found[world] = losses(tmp_path / str(world))
    assert seen[1] == seen[2] == seen[4]
    worst = 0.0
    for world in (2, 4):
        assert [row.keys() for row in found[world]] == [row.keys() for row in found[1]]
        for ours, theirs in zip(found[world], found[1], strict=True):
            for name, value in ours.items():
                if name.startswith("Loss/"):
                    worst = max(worst, abs(value - theirs[name]) / abs(theirs[name]))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.slow
def test_b3_ranks_may_come_and_go(tmp_path: Path) -> None:
    """World 2, then 1, then 2 again: the order of samples goes on as if it had been one."""
    overrides = ("train.batch_gpu=2",)
    whole = run(1, trained, str(tmp_path / "whole"), 12, *overrides)[0]
    seen: list[list[str]] = []
    for world, steps in ((2, 4), (1, 8), (2, 12)):
        ranks = run(world, trained, str(tmp_path / "parts"), steps, *overrides)
        seen += [[text for rank in ranks for text in rank[k]] for k in range(4)]
    assert seen == whole
    for ours, theirs in zip(losses(tmp_path / "parts"), losses(tmp_path / "whole"), strict=True):
        for name, value in ours.items():
            assert math.isclose(value, theirs[name], rel_tol=1e-5, abs_tol=1e-6), name
