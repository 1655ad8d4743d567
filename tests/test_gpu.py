"""On an accelerator: the same pictures but for rounding, and a run that trains, saves and goes on."""

import json
from pathlib import Path

import pytest
import torch

from gigagan import config, dist
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator
from gigagan.pipeline import Pipeline
from gigagan.training.loop import train

pytestmark = pytest.mark.gpu
DEVICE = dist.device("auto")
PROMPTS = ["a red apple", "two pears", "x"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    cfg = config.load("tiny", ["generator.num_filters=[3,2,1]"]).generator
    return Generator(cfg, feature_dim=HashedText.feature_dim).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_those_of_the_cpu(generator: Generator, dtype: torch.dtype) -> None:
    expected = Pipeline(generator, HashedText(max_tokens=8))(PROMPTS, seeds=[1, 2, 3]).pyramid[0].float()
    there = Generator(generator.cfg, feature_dim=HashedText.feature_dim)
    there.load_state_dict(generator.state_dict())
    pipe = Pipeline(there.to(DEVICE), HashedText(max_tokens=8, device=DEVICE), dtype=dtype)
    img = pipe(PROMPTS, seeds=[1, 2, 3]).pyramid[0]
    assert (img.float() - expected).abs().mean() < (1 if dtype == torch.float32 else 3)
    assert torch.equal(pipe(PROMPTS[1], seeds=[2]).pyramid[0][0], img[1])  # alone or in a batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_and_goes_on(dtype: str, tmp_path: Path) -> None:
    keys = ["train.batch=8", "train.batch_gpu=8", "train.kimg_per_tick=0.016", f"train.dtype={dtype}"]
    for total in ("0.032", "0.064"):
        train(config.load("tiny", [*keys, f"train.total_kimg={total}"]), tmp_path, device=DEVICE)
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Progress/kimg"] == 0.064
    assert Pipeline.from_pretrained(tmp_path / "model", device=DEVICE)("a red apple", seeds=0).images


def test_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    keys = ["train.batch=8", "train.batch_gpu=8", "train.total_kimg=0.008", "train.kimg_per_tick=0.008"]
    rows = []
    for device in (torch.device("cpu"), DEVICE):
        run = tmp_path / device.type
        train(config.load("tiny", keys), run, device=device)
        rows.append(json.loads((run / "stats.jsonl").read_text().splitlines()[0]))
    for name in ("Loss/D/adv", "Loss/G/adv", "Loss/D/r1", "Loss/G/paired_l1"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=0.05), name
