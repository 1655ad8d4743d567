"""Numbers that aren't finite (rows D1, D2 and D5 of the fault matrix): nothing of them reaches weights or files."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gigagan import checkpoint, dist
from gigagan.errors import CheckpointError, GigaGANError
from gigagan.models.frozen import HashedText
from gigagan.training import guard, loop
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, all_finite
from gigagan.training.steps import discriminator_step, generator_step
from tests.ranks import CPU, run, speck

KINDS = ("batch", "loss", "gradient", "ema")
STEP = 8  # images


def poison(kind: str, state: TrainState, batch: MicroBatch, half: Any, value: float) -> Any:
    """A half step with something other than a number in it."""
    if kind == "batch":
        batch = dataclasses.replace(batch, z=torch.full_like(batch.z, value))
    stats = half(batch)
    if kind == "loss":
        stats |= {"Loss/D/adv": torch.tensor(value)}
    if kind == "gradient":
        network = state.G if half.__name__ == "g" else state.D
        gradient = next(p.grad for p in network.parameters() if p.grad is not None)
        gradient.view(-1)[0] = value
    return stats


def sabotage(when: dict[int, tuple[str, int, str, float]]) -> dict[str, int]:
    """Patch this process: at step k, (half, rank, kind, value). Counts what the run did about it."""
    seen = {"updates": 0, "not_finite": 0, "ema_not_finite": 0}

    def hit(half: str, state: TrainState) -> tuple[str, float] | None:
        which, rank, kind, value = when.get(state.place // STEP, ("", 0, "", 0.0))
        return (kind, value) if which == half and rank == dist.rank() else None

    def D(state: TrainState, batch: MicroBatch, *, share: float, r1: bool) -> Any:
        def d(batch: MicroBatch) -> Any:
            return discriminator_step(state, batch, share=share, r1=r1)

        found = hit("D", state)
        return d(batch) if found is None else poison(found[0], state, batch, d, found[1])

    def G(state: TrainState, batch: MicroBatch, *, share: float) -> Any:
        def g(batch: MicroBatch) -> Any:
            return generator_step(state, batch, share=share)

        found = hit("G", state)
        return g(batch) if found is None or found[0] == "ema" else poison(found[0], state, batch, g, found[1])

    update_ema = TrainState.update_ema

    def watched(state: TrainState) -> bool:
        found = hit("G", state)
        if found is not None and found[0] == "ema":  # a weight is hit after the step's own check
            next(iter(state.G.parameters())).data.view(-1)[0] = found[1]
        good = update_ema(state)
        seen["updates"] += good
        seen["not_finite"] += not all_finite([*state.G.parameters(), *state.D.parameters()])
        seen["ema_not_finite"] += not all_finite([*state.G_ema.parameters(), *state.G_ema.buffers()])
        return good

    loop.discriminator_step, loop.generator_step = D, G  # type: ignore[assignment]
    TrainState.update_ema = watched  # type: ignore[method-assign]
    return seen


def sabotaged_run(folder: str, steps: int, when: dict[int, tuple[str, int, str, float]]) -> dict[str, Any]:
    seen = sabotage(when)
    loop.train(speck(f"train.total_kimg={steps * STEP / 1000}"), Path(folder), device=CPU)
    state = checkpoint.latest_state(Path(folder))
    assert state is not None
    digest = hashlib.sha256()
    for named in state.tensors.values():
        for tensor in named.values():
            assert bool(tensor.isfinite().all())
            digest.update(tensor.numpy().tobytes())
    return {**seen, "digest": digest.hexdigest(), "meta": state.meta, "nimg": state.nimg}


@pytest.mark.slow
@pytest.mark.parametrize(
    "injections", [pytest.param(9, id="ci"), pytest.param(50, id="full", marks=pytest.mark.matrix)]
)
def test_d1_a_bad_number_on_one_rank_is_left_out_on_all(tmp_path: Path, injections: int) -> None:
    draw = random.Random(injections)
    steps = injections * 3
    # Never ten in a row: that is D2.
    chosen = [3 * k + draw.randrange(2) for k in range(injections)]
    kinds = [KINDS[k % 3] for k in range(injections)]
    values = [float("nan"), float("inf"), float("-inf")]
    when = {
        step: (draw.choice("DG"), draw.randrange(2), kind, draw.choice(values))
        for step, kind in zip(chosen, kinds, strict=True)
    }
    found = run(2, sabotaged_run, str(tmp_path), steps, when)
    for seen in found:
        assert seen["updates"] == steps - injections
        assert seen["not_finite"] == seen["ema_not_finite"] == 0
        assert seen["nimg"] == steps * STEP
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Progress/skipped_steps"] == injections
    named = [json.loads(line) for line in (tmp_path / "trouble.jsonl").read_text().splitlines()]
    assert len({line["kimg"] for line in named}) == injections
    assert {line["rank"] for line in named if isinstance(line["not_finite"], list)} <= {0, 1}


def persistent(folder: str, first: int, last: int, total: int) -> dict[str, Any]:
    return sabotaged_run(folder, total, {k: ("D", dist.rank(), "loss", float("nan")) for k in range(first, last)})


@pytest.mark.slow
def test_d2_persistent_trouble_goes_back_and_passes_over_the_pictures(tmp_path: Path) -> None:
    """Places 4 ... 16 of the order are poisoned for good, as a bad shard would be."""
    seen = run(1, persistent, str(tmp_path), 4, 17, 30)[0]
    assert seen["meta"]["rate"] == 0.5
    # Ten bad steps lead back to the state at step 4 (each tick saves); the next three and ten more once again.
    assert seen["meta"]["passed_over"] == 10 * STEP
    assert seen["nimg"] == 30 * STEP
    assert seen["ema_not_finite"] == seen["not_finite"] == 0
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Progress/skipped_steps"] == 13


@pytest.mark.slow
def test_d2_a_weight_that_is_not_finite_comes_back_from_the_last_state(tmp_path: Path) -> None:
    seen = run(1, sabotaged_run, str(tmp_path), 20, {5: ("G", 0, "ema", float("nan"))})[0]
    assert seen["meta"]["passed_over"] == 10 * STEP
    assert seen["meta"]["rate"] == 0.5
    assert seen["ema_not_finite"] == 0
    assert seen["nimg"] == 20 * STEP


@pytest.mark.slow
def test_d2_a_weight_that_is_not_finite_on_one_rank_leads_all_back(tmp_path: Path) -> None:
    """Of a G that each rank has whole."""
    for seen in run(2, sabotaged_run, str(tmp_path), 20, {5: ("G", 1, "ema", float("nan"))}):
        assert seen["meta"]["passed_over"] == 10 * STEP
        assert seen["ema_not_finite"] == 0
        assert seen["nimg"] == 20 * STEP


def hopeless(folder: str) -> str:
    sabotage({k: ("D", 0, "loss", float("nan")) for k in range(4, 1000)})
    try:
        loop.train(speck("train.total_kimg=1"), Path(folder), device=CPU)
    except GigaGANError as error:
        return str(error)
    raise AssertionError("it went on")


@pytest.mark.slow
def test_d2_after_three_rollbacks_the_run_stops_with_a_report(tmp_path: Path) -> None:
    report = run(1, hopeless, str(tmp_path))[0]
    assert "\n" not in report
    assert "after going back 3 times" in report
    assert "trouble.jsonl" in report
    state = checkpoint.latest_state(tmp_path)
    assert state is not None
    assert state.nimg == 4 * STEP
    assert (state.meta["rate"], state.meta["passed_over"]) == (0.5, 3 * 10 * STEP)
    assert len(state.meta["rollbacks"]) == 3
    named = (tmp_path / "trouble.jsonl").read_text().splitlines()
    again = run(1, hopeless, str(tmp_path))[0]  # a restart knows how often it was tried
    assert "after going back 3 times" in again
    assert len((tmp_path / "trouble.jsonl").read_text().splitlines()) == len(named) + guard.BAD_IN_A_ROW


def test_going_back_is_remembered_and_in_time_forgotten(tmp_path: Path) -> None:
    state = TrainState(speck(), feature_dim=HashedText.feature_dim, device=CPU)

    def trouble_at(kimg: float) -> None:
        watch, state.nimg = guard.Guard(tmp_path), round(kimg * 1000)  # as of a process that has just started
        assert [watch.persists(False, state, ["Loss/D/adv"]) for _ in range(guard.BAD_IN_A_ROW)][-1]

    for kimg in (100.0, 500.0, 900.0):
        trouble_at(kimg)
    assert state.numbers()["rollbacks"] == [100, 500, 900]
    with pytest.raises(GigaGANError, match=r"after going back 3 times \(at 100.000, 500.000, 900.000 kimg\)"):
        trouble_at(1000.0)
    trouble_at(1200.0)
    assert state.rollbacks == [500, 900, 1200]

    other = TrainState(speck(), feature_dim=HashedText.feature_dim, device=CPU)
    other.load_state_dict(state.state_dict(), state.nimg, json.loads(json.dumps(state.numbers())))
    assert other.rollbacks == state.rollbacks
    other.load_state_dict(state.state_dict(), state.nimg, {"rate": 0.5})  # of a version that didn't know it
    assert (other.rollbacks, other.rate) == ([], 0.5)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_d3_a_healthy_run_is_left_alone(tmp_path: Path, seed: int) -> None:
    overrides = (f"train.seed={seed}", "train.total_kimg=80", "train.kimg_per_tick=8", "train.batch_gpu=8")
    loop.train(speck(*overrides), tmp_path, device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Progress/kimg"] == 80
    assert rows[-1]["Progress/skipped_steps"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_d5_what_is_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    good = {"G": {"w": torch.ones(3)}, "opt_D": {"w/exp_avg": torch.zeros(3)}}
    path = checkpoint.save_state(tmp_path, 8, good, {}, keep=2)
    bad = {**good, "opt_D": {"w/exp_avg": torch.tensor([0.0, value, 0.0])}}
    with pytest.raises(CheckpointError, match="opt_D: w/exp_avg isn't finite"):
        checkpoint.save_state(tmp_path, 16, bad, {}, keep=2)
    found = checkpoint.latest_state(tmp_path)
    assert found is not None
    assert found.path == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_wish_of_one_rank_is_one_of_all() -> None:
    assert (
        run(2, wishes_of) == [[(True, False, False), (True, True, False), (True, False, True), (False, True, True)]] * 2
    )


def wishes_of() -> list[tuple[bool, ...]]:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    verdicts = []
    other = dist.rank() == 1
    for loss, stop, tick in [
        (1.0, False, False),
        (1.0, other, False),
        (1.0, False, not other),
        (float("nan") if other else 1.0, True, other),
    ]:
        weight.grad = torch.full((3,), 1.0 + dist.rank())
        extra = torch.tensor([1.0])
        verdict, norms = guard.exchange([optimizer], torch.tensor(loss), [extra], guard.Wishes(stop, tick))
        assert weight.grad.tolist() == [3.0] * 3
        assert extra.tolist() == [2.0]
        torch.testing.assert_close(norms[0], torch.tensor(27.0).sqrt())
        verdicts.append(tuple(verdict))
    return verdicts
