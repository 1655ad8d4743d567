"""The vision-aided game and the perceptual term: own captions real, others' fake, gradients where they belong."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gigagan import checkpoint, config, losses
from gigagan.config import RunConfig
from gigagan.errors import CheckpointError
from gigagan.models import frozen_image
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.models.layers import to_float
from gigagan.training import loop, steps
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch

CPU = torch.device("cpu")
CAPTIONS = ["one red", "two green", "three blue", "four gray"]


@pytest.fixture
def cfg() -> RunConfig:
    overrides = ["loss.vision_weight=1", "loss.perceptual_weight=2", "vision.text_dim=32", "vision.channels=16"]
    return config.load("tiny", ["train.batch=4", "train.batch_gpu=4", "augment.prob=0", "optim_D.lr=0.01", *overrides])


@pytest.fixture
def state(cfg: RunConfig, random_lite0: EfficientNetLite) -> TrainState:
    torch.manual_seed(0)
    return TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU, image_network=random_lite0)


@pytest.fixture
def batch(cfg: RunConfig) -> MicroBatch:
    return micro_batch(cfg, CAPTIONS)


def train_judges(state: TrainState, batch: MicroBatch, count: int) -> steps.Stats:
    stats: steps.Stats = {}
    for _ in range(count):
        assert state.V is not None
        with updating(state.D, state.opt_D), updating(state.V, state.opt_V):
            state.opt_V.zero_grad()
            stats = steps.discriminator_step(state, batch, share=1.0, r1=False)
            state.opt_V.step()
    return stats


def gap(state: TrainState, batch: MicroBatch) -> float:
    """How much higher V scores real pictures under their own captions than under others'."""
    assert state.V is not None
    assert state.image_network is not None
    seen = state.V.look(state.image_network(to_float(batch.img), min_res=state.cfg.vision.resolution).maps)
    t = state.V.text(batch.features).t_global
    own, other = (torch.stack([v.mean() for v in state.V.judge(seen, of)]).mean() for of in (t, t[batch.other]))
    return float(own - other)


def test_v_learns_own_captions_real_and_others_fake(state: TrainState, batch: MicroBatch) -> None:
    stats = train_judges(state, batch, 120)
    assert stats["Scores/vision_real"] > 1
    assert stats["Scores/vision_gen"] < -1
    assert gap(state, batch) > 1.5


def test_swapped_captions_are_caught(state: TrainState, batch: MicroBatch) -> None:
    """Sabotage: shown its own caption as another's, V doesn't learn to tell the two apart."""
    train_judges(state, dataclasses.replace(batch, other=torch.arange(4)), 60)
    assert gap(state, batch) < 0.7


def test_each_half_step_moves_its_own_networks(state: TrainState, batch: MicroBatch) -> None:
    assert state.V is not None
    with updating(state.D, state.opt_D), updating(state.V, state.opt_V):
        steps.discriminator_step(state, batch, share=1.0, r1=False)
    idle = [n for n, p in state.V.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    assert all(p.grad is None for p in state.G.parameters())
    state.opt_D.zero_grad()
    state.opt_V.zero_grad()
    with updating(state.G, state.opt_G):
        steps.generator_step(state, batch, share=1.0)
    assert all(p.grad is None for p in [*state.V.parameters(), *state.D.parameters()])
    assert state.image_network is not None
    assert all(p.grad is None for p in state.image_network.parameters())


def test_both_terms_reach_the_generator(cfg: RunConfig, state: TrainState, batch: MicroBatch) -> None:
    def gradient(**weights: float) -> Tensor:
        off = {
            "level_weights": (1e-9, 1e-9, 1e-9),
            "paired_l1_weight": 0.0,
            "vision_weight": 0.0,
            "perceptual_weight": 0.0,
        }
        state.cfg = cfg.model_copy(update={"loss": cfg.loss.model_copy(update=off | weights)})
        state.opt_G.zero_grad()
        with updating(state.G, state.opt_G):
            steps.generator_step(state, batch, share=1.0)
        return state.G.synthesis.input.grad.clone()  # type: ignore[union-attr]

    vision, perceptual = gradient(vision_weight=1.0), gradient(perceptual_weight=1.0)
    assert vision.norm() > 0
    assert perceptual.norm() > 0
    both = gradient(vision_weight=1.0, perceptual_weight=1.0)
    torch.testing.assert_close(both, vision + perceptual, rtol=1e-3, atol=1e-6)


def test_perceptual_distance_is_its_formula() -> None:
    torch.manual_seed(0)
    a, b = ([torch.randn(3, c, s, s) for c, s in ((4, 8), (6, 4))] for _ in range(2))
    expected = torch.zeros(3).double()
    for x, y in zip(a, b, strict=True):
        for n in range(3):
            u, v = x[n].double().flatten(1), y[n].double().flatten(1)
            for p in range(u.shape[1]):
                expected[n] += (u[:, p] / u[:, p].norm() - v[:, p] / v[:, p].norm()).square().sum() / u.shape[1] / 2
    torch.testing.assert_close(losses.perceptual_distance(a, b).double(), expected, rtol=1e-5, atol=1e-6)
    assert losses.perceptual_distance(a, a).tolist() == [0, 0, 0]


def test_the_state_holds_v_and_its_optimizer(cfg: RunConfig, state: TrainState, batch: MicroBatch) -> None:
    train_judges(state, batch, 2)
    tensors = state.state_dict()
    assert {"V", "opt_V"} <= tensors.keys()
    torch.manual_seed(1)
    other = TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU, image_network=state.image_network)
    other.load_state_dict(tensors, 8)
    for component, named in other.state_dict().items():
        for name, value in named.items():
            assert torch.equal(value, tensors[component][name]), f"{component}: {name}"


def test_missing_weights_are_one_line_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_image, "CACHE", tmp_path / "cache")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: no such file; .*sha256 57934424.*: gigagan data weights lite0"
    ):
        loop.train(config.load("tiny", ["loss.perceptual_weight=1"]), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
    assert checkpoint.latest_state(tmp_path / "run") is None


def test_each_term_of_g_is_measured_alone_and_together_they_are_its_gradient(
    cfg: RunConfig, batch: MicroBatch, random_lite0: EfficientNetLite
) -> None:
    tree = cfg.model_dump(mode="json")
    tree["loss"] |= {"perceptual_weight": 0.5, "paired_l1_weight": 3.0, "match_weight_G": 0.7}
    torch.manual_seed(0)
    cfg = config.from_dict(tree)
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU, image_network=random_lite0)
    found = steps.term_gradients(state, batch)
    names = {"adv", "match", "vision", "perceptual", "paired_l1"}
    assert found.keys() == {f"Gradients/G/{name}" for name in names}
    assert all(p.grad is None and not p.requires_grad for p in state.G.parameters())

    weights = state.weights

    def gradient(kept: set[str]) -> Tensor:
        """Of a step in which only some terms have their weight."""
        alone = weights._replace(
            adv=weights.adv if kept & {"adv", "match"} else 0.0,
            match_G=weights.match_G if "match" in kept else 0.0,
            vision=weights.vision if "vision" in kept else 0.0,
            perceptual=weights.perceptual if "perceptual" in kept else 0.0,
            paired_l1=weights.paired_l1 if "paired_l1" in kept else 0.0,
        )
        with pytest.MonkeyPatch.context() as patch, updating(state.G, state.opt_G):
            patch.setattr(TrainState, "weights", alone)
            state.opt_G.zero_grad(set_to_none=True)
            steps.generator_step(state, batch, share=1.0)
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in state.G.parameters()])

    parts = {name: gradient({name}) for name in names - {"match"}}
    parts["match"] = gradient({"adv", "match"}) - parts["adv"]
    for name, part in parts.items():
        assert found[f"Gradients/G/{name}"] == pytest.approx(float(part.norm()), rel=1e-3)
    torch.testing.assert_close(sum(parts.values()), gradient(names), rtol=1e-3, atol=1e-5)
