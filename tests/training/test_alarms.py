"""Row D4 of the fault matrix: five sabotaged runs sound an alarm before 2,000 steps, and healthy ones don't."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gigagan.training import loop
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState
from gigagan.training.steps import discriminator_step, generator_step
from tests.ranks import CPU, speck

BATCH = 16
RUN = (f"train.batch={BATCH}", f"train.batch_gpu={BATCH}", "train.total_kimg=32", "train.kimg_per_tick=1")
CUT = ("to_scale.weight", "to_select.weight", "style_token.weight", "to_v.weight")


class Heard(Exception):
    """An alarm: nothing more is to be learned from the run."""


def one_text(state: TrainState, batch: MicroBatch) -> MicroBatch:
    """Every prompt reads like the first."""
    features = batch.features
    same = {
        f.name: getattr(features, f.name)[:1].expand_as(getattr(features, f.name)) for f in dataclasses.fields(features)
    }
    return dataclasses.replace(batch, features=type(features)(**same))


def one_picture(state: TrainState, batch: MicroBatch) -> MicroBatch:
    """A loader that gives the same picture again and again."""
    return dataclasses.replace(batch, img=torch.full_like(batch.img, 128))


def deaf(state: TrainState, batch: MicroBatch) -> MicroBatch:
    """G's styles and words reach nothing."""
    with torch.no_grad():
        for name, parameter in state.G.synthesis.named_parameters():
            if name.endswith(CUT):
                parameter.zero_()
    return batch


def as_it_is(state: TrainState, batch: MicroBatch) -> MicroBatch:
    return batch


SABOTAGE: dict[str, tuple[Callable[[TrainState, MicroBatch], MicroBatch], tuple[str, ...], str]] = {
    "text": (one_text, (), "the text is ignored"),
    "pictures": (one_picture, (), "G has collapsed"),
    "styles": (deaf, (), "a dead level"),
    "blind D": (as_it_is, ("optim_D.lr=1e-9",), "it has learned nothing"),
    "sure D": (as_it_is, ("optim_D.lr=0.01", "optim_G.lr=1e-7", "loss.r1_gamma=0"), "it has won"),
}


def heard(
    monkeypatch: pytest.MonkeyPatch, folder: Path, change: Callable[[TrainState, MicroBatch], MicroBatch], *more: str
) -> list[str]:
    """The first alarms of a run whose batches are changed."""
    found: list[str] = []

    def D(state: TrainState, batch: MicroBatch, **rest: Any) -> Any:
        return discriminator_step(state, change(state, batch), **rest)

    def G(state: TrainState, batch: MicroBatch, **rest: Any) -> Any:
        return generator_step(state, change(state, batch), **rest)

    def sound(alarms: list[str], known: set[str]) -> set[str]:
        found.extend(alarms)
        if found:
            raise Heard
        return known

    monkeypatch.setattr(loop, "discriminator_step", D)
    monkeypatch.setattr(loop, "generator_step", G)
    monkeypatch.setattr(loop, "_sound", sound)
    with contextlib.suppress(Heard):
        loop.train(speck(*RUN, *more), folder, device=CPU)
    return found


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", SABOTAGE)
def test_d4_a_sick_run_sounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    change, overrides, expected = SABOTAGE[kind]
    found = heard(monkeypatch, tmp_path, change, *overrides)
    assert any(expected in line for line in found), found


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_d4_a_healthy_run_is_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    assert heard(monkeypatch, tmp_path, as_it_is, f"train.seed={seed}") == []
