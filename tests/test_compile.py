"""torch.compile gives the same numbers, in drawing and in training. Each in a process whose shapes aren't checked."""

import subprocess
import sys

import pytest

DRAWING = """
import torch
from gigagan import config
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator
from gigagan.pipeline import Pipeline
torch.manual_seed(0)
cfg = config.load("tiny").generator
G = Generator(cfg, feature_dim=32)
pipes = [Pipeline(G, HashedText(max_tokens=8), compiled=compiled) for compiled in (False, True)]
a, b = (pipe("a red apple", seeds=[0, 1]).pyramid[0].int() for pipe in pipes)
assert a.float().std() > 10
assert (a - b).abs().max() <= 1, (a - b).abs().max()
"""

TRAINING = """
import json, tempfile  # prompts of one length: each is compiled by itself
from pathlib import Path
import torch
from gigagan import config
from gigagan.training.loop import train
rows = []
for compiled in ("false", "true"):
    run = Path(tempfile.mkdtemp())
    keys = ["train.batch=8", "train.batch_gpu=8", "train.total_kimg=0.032", "train.kimg_per_tick=0.008"]
    keys += [f"train.compile={compiled}", "text.max_tokens=8"]
    train(config.load("tiny", keys), run, device=torch.device("cpu"))
    rows.append([json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()])
for plain, fast in zip(*rows, strict=True):
    for name, value in plain.items():
        if name.startswith(("Loss", "Scores")):
            assert abs(value - fast[name]) <= 1e-3 * max(1, abs(value)), (name, value, fast[name])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "code",
    [pytest.param(DRAWING, id="drawing"), pytest.param(TRAINING, id="training", marks=pytest.mark.matrix)],
)
def test_compiled_equals_eager(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
