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
# A LeakyReLU that the last bit of a sum tips over changes a whole gradient; at a small rate that stays small.
SMALL_RATE = ("optim_G.lr=1e-4", "optim_D.lr=1e-4")
FACTORS = list(itertools.product((False, True), (False, True), (0, 2), (1, 2), (1, 2)))
"""Upsampler, augmented, readers, ranks, accumulation."""
EACH_PAIR = [f for k, f in enumerate(FACTORS) if (k >> 1 ^ k >> 3 ^ k >> 4) & 1 == 0 == (k ^ k >> 2 ^ k >> 4) & 1]
UPSAMPLER = (
    *("generator.kind=upsampler", "generator.input_resolution=16", "generator.resolution=32", "data.crop=32"),
    *("generator.blocks=[1,1,1,1,1]", "generator.num_filters=[1,1,2,1,1]", "generator.noise_max=0.05"),
    *("discriminator.blocks=[1,1,1,1]", "loss.level_weights=[1.0]"),
)


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
    """Of each step; of one that was done again after a restart, those of the second time."""
    rows = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    steps = {row["Progress/kimg"]: row for row in rows}.values()
    return [{name: value for name, value in row.items() if name.startswith(("Loss/", "Scores/"))} for row in steps]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    state = latest_state(run_dir)
    assert state is not None
    return {f"{part}: {name}": t for part, named in state.tensors.items() for name, t in named.items()}


def cases() -> list[Any]:
    """In CI 12 steps of eight, which cover every pair of factors; in `make matrix` 40 of all."""
    ci = [pytest.param(12, *f, id="-".join(map(str, f))) for f in EACH_PAIR]
    return ci + [pytest.param(40, *f, id="-".join(map(str, f)) + "-full", marks=pytest.mark.matrix) for f in FACTORS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("steps", "upsampler", "augmented", "readers", "world", "accumulation"), cases())
def test_b1_a_killed_run_ends_as_the_unbroken_one(
    tmp_path: Path, steps: int, upsampler: bool, augmented: bool, readers: int, world: int, accumulation: int
) -> None:
    overrides = (
        *(UPSAMPLER if upsampler else ()),
        f"augment.prob={0.5 * augmented}",
        f"data.num_workers={readers}",
        f"train.batch_gpu={BATCH // world // accumulation}",
    )
    run(world, trained, str(tmp_path / "whole"), steps, *overrides)
    parts = tmp_path / "parts"
    ranks = start(world, trained, str(parts), steps, *overrides)
    attempts = parts / "attempts.txt"
    end = time.monotonic() + 120
    while not attempts.exists() or int((attempts.read_text().split() or ["0"])[-1]) < steps // 2 * BATCH:
        assert time.monotonic() < end
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
    assert finish(ranks) == [-9] * world
    assert int(attempts.read_text().split()[-1]) < steps * BATCH, "it wasn't killed on its way"
    run(world, trained, str(parts), steps, *overrides)
    whole, resumed = tensors(tmp_path / "whole"), tensors(parts)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert losses(tmp_path / "whole") == losses(parts)


@pytest.mark.slow
def test_b3_one_two_and_four_ranks_see_and_learn_the_same(tmp_path: Path) -> None:
    """The same samples, and losses within 1e-5 over the first 20 steps; minibatch-std groups are of global order."""
    overrides = ("discriminator.minibatch_std=2", "train.batch_gpu=2", *SMALL_RATE)
    seen = {}
    for world in (1, 2, 4):
        ranks = run(world, trained, str(tmp_path / str(world)), 20, *overrides)
        seen[world] = [[text for rank in ranks for text in rank[k]] for k in range(20)]
    assert seen[1] == seen[2] == seen[4]
    # Micro-batches larger than a rank's share are that share, in gradients and in the mean style, which is tracked.
    run(2, trained, str(tmp_path / "large"), 20, *overrides, "train.batch_gpu=8")
    run(1, trained, str(tmp_path / "fits"), 20, *overrides, "train.batch_gpu=4")
    assert worst_difference(tmp_path / "large", tmp_path / "fits") <= 1e-5
    ours, theirs = (tensors(tmp_path / name) for name in ("large", "fits"))
    (tracked,) = (name for name in ours if name.endswith("mapping.w_avg") and name.startswith("G:"))
    torch.testing.assert_close(ours[tracked], theirs[tracked], rtol=1e-4, atol=1e-6)
    worst = max(worst_difference(tmp_path / str(world), tmp_path / "1") for world in (2, 4))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert worst <= 1e-5


def worst_difference(ours: Path, theirs: Path) -> float:
    """Largest relative one of any loss at any step."""
    pairs = list(zip(losses(ours), losses(theirs), strict=True))
    assert all(a.keys() == b.keys() for a, b in pairs)
    return max(abs(a[n] - b[n]) / abs(b[n]) for a, b in pairs for n in a if n.startswith("Loss/"))


@pytest.mark.slow
def test_sharded_and_recomputed_training_is_that_of_one_process(tmp_path: Path) -> None:
    """FSDP2 for G, activations computed again, lazy R1 on; from one state to the other and back."""
    plain = ("train.batch_gpu=4", *SMALL_RATE)
    sharded = (*plain, "train.shard_G=true", "train.recompute=true")
    run(1, trained, str(tmp_path / "whole"), 20, *plain)
    run(2, trained, str(tmp_path / "sharded"), 20, *sharded)
    worst = worst_difference(tmp_path / "sharded", tmp_path / "whole")
    assert worst <= 1e-4
    for world, steps, overrides in ((2, 6, sharded), (1, 12, plain), (2, 20, sharded)):
        run(world, trained, str(tmp_path / "parts"), steps, *overrides)
    parts = worst_difference(tmp_path / "parts", tmp_path / "whole")
    print(f"largest relative difference of a loss: {worst:.1e}, with changes on the way {parts:.1e}")
    assert parts <= 1e-4
    assert (tmp_path / "sharded" / "model").is_dir()


@pytest.mark.slow
def test_b3_ranks_may_come_and_go(tmp_path: Path) -> None:
    """World 2, then 1, then 2 again: the order of samples goes on as if it had been one."""
    overrides = ("train.batch_gpu=2", *SMALL_RATE)
    whole = run(1, trained, str(tmp_path / "whole"), 12, *overrides)[0]
    seen: list[list[str]] = []
    for world, steps in ((2, 4), (1, 8), (2, 12)):
        ranks = run(world, trained, str(tmp_path / "parts"), steps, *overrides)
        seen += [[text for rank in ranks for text in rank[k]] for k in range(4)]
    assert seen == whole
    for ours, theirs in zip(losses(tmp_path / "parts"), losses(tmp_path / "whole"), strict=True):
        for name, value in ours.items():
            assert math.isclose(value, theirs[name], rel_tol=1e-5, abs_tol=1e-6), name
