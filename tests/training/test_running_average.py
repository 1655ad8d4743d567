"""The running average of G: its half-life late in a run and at its start."""

import pytest
import torch

from gigagan import config
from gigagan.models.frozen import HashedText
from gigagan.training.state import TrainState


@pytest.fixture
def state() -> TrainState:
    cfg = config.load("tiny", ["train.batch=100", "train.batch_gpu=100", "train.ema_kimg=2.0"])
    torch.manual_seed(0)
    return TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("nimg", "half_life"),
    [
        (1_000_000, 2000),  # of the configuration
        (20_000, 1000),  # a twentieth of the run
        (0, 0.05),
    ],
)
def test_the_running_average_follows_the_run_at_first(state: TrainState, nimg: int, half_life: float) -> None:
    state.nimg = nimg
    with torch.no_grad():
        for ours, theirs in zip(state.G_ema.parameters(), state.G.parameters(), strict=True):
            ours.fill_(1.0)
            theirs.fill_(0.0)
    assert state.update_ema()
    expected = 0.5 ** (100 / half_life)
    for ours in state.G_ema.parameters():
        torch.testing.assert_close(ours, torch.full_like(ours, expected), rtol=1e-3, atol=1e-6)
