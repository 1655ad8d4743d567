"""Health of a run: each figure against its definition, each alarm against the illness that it is named for."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gigagan import config
from gigagan.augment import Augmentation
from gigagan.losses import mismatched
from gigagan.models.attention import L2Attention
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.layers import image_pyramid, to_float
from gigagan.training import health, loop
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState

CPU = torch.device("cpu")


@pytest.fixture
def state() -> TrainState:
    torch.manual_seed(0)
    return TrainState(config.load("tiny", ["augment.prob=0"]), feature_dim=HashedText.feature_dim, device=CPU)


@pytest.fixture
def batch() -> MicroBatch:
    captions = ["one red", "two green", "three blue", "four gray"]
    generator = torch.Generator().manual_seed(0)
    other, has_other = mismatched(captions, generator)
    return MicroBatch(
        img=torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator),
        captions=captions,
        others=None,
        features=HashedText(max_tokens=16).encode(captions),
        z=torch.randn(4, 16, generator=generator),
        augmentation=Augmentation.draw(config.load("tiny").augment, 4, generator, CPU),
        other=other,
        has_other=has_other,
    )


def test_every_layer_has_its_figure(state: TrainState, batch: MicroBatch) -> None:
    before = {n: p.clone() for n, p in state.G.state_dict().items()}
    found = health.examine(state, batch)
    assert {f"Health/G/spread/{r}x{r}" for r in (4, 8, 16)} <= found.keys()
    assert {
        f"Logits/{kind}/{i}_{j}" for kind in ("real", "gen") for i in range(3) for j in range(i + 1, 4)
    } <= found.keys()
    banks = [name for name in found if "filter_entropy" in name]
    assert len(banks) == 3  # 4 px has one convolution, 8 px two, 16 px one filter a bank
    stacks = [name for name in found if "attention_entropy" in name]
    assert len(stacks) == 3  # G: self and cross; D: self
    assert all(0 <= found[name] <= 1 for name in banks + stacks)
    assert all(math.isfinite(value) for value in found.values())
    assert state.G.training
    assert all(torch.equal(value, before[name]) for name, value in state.G.state_dict().items())
    assert not any(module._forward_hooks for module in state.G.modules())


def test_entropies_are_those_of_the_weights() -> None:
    assert health._entropy(torch.full((3, 4), 0.25)) == pytest.approx(1)
    assert health._entropy(torch.eye(4)) == 0
    weights = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    assert health._entropy(weights) == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)) / math.log(3))
    torch.manual_seed(0)
    layer = L2Attention(8, 8, inner_dim=8, num_heads=2, tied=False).requires_grad_(False)
    same = torch.randn(1, 1, 8).expand(1, 5, 8)  # equal keys: equal weights
    assert health._attention_entropy(layer, torch.randn(1, 3, 8), same) == pytest.approx(1, abs=1e-5)
    mask = torch.tensor([[True, True, False, False, False]])
    assert health._attention_entropy(layer, torch.randn(1, 3, 8), same, mask) == pytest.approx(1, abs=1e-5)


def test_a_dead_level_and_a_collapse_sound(state: TrainState, batch: MicroBatch) -> None:
    """Sabotage: styles and words that reach nothing make every level the same whatever the prompt."""
    assert not health.alarms(health.examine(state, batch), 100)
    with torch.no_grad():
        for name, parameter in state.G.synthesis.named_parameters():
            if name.endswith(("to_scale.weight", "to_select.weight", "style_token.weight", "to_v.weight")):
                parameter.zero_()
    sick = health.alarms(health.examine(state, batch), 100)
    assert sum("a dead level" in line for line in sick) == 3
    assert any("G has collapsed" in line for line in sick)
    assert not health.alarms(health.examine(state, batch), 1)  # too early to say


def test_a_generator_that_is_deaf_to_text_sounds(
    state: TrainState, batch: MicroBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: whatever the prompt, G is told of the first one; seeds still make its pictures differ."""
    forward, first = state.G.forward, torch.zeros(len(batch.captions), dtype=torch.long)

    def deaf(z: torch.Tensor, features: TextFeatures, **kwargs: Any) -> list[torch.Tensor]:
        one = TextFeatures(features.tokens[first], features.mask[first], features.global_index[first])
        return forward(z, one, **kwargs)

    monkeypatch.setattr(state.G, "forward", deaf)
    assert state.G(batch.z, batch.features)[0].std(dim=0).mean() > 0.1
    sick = health.alarms(health.examine(state, batch), 100)
    assert sum("a dead level" in line for line in sick) == 3
    assert any("ignores the text" in line for line in sick)


def test_seeds_are_looked_at_where_prompts_are_all_one(state: TrainState, batch: MicroBatch) -> None:
    one = torch.zeros(4, dtype=torch.long)
    features = TextFeatures(batch.features.tokens[one], batch.features.mask[one], batch.features.global_index[one])
    batch = dataclasses.replace(batch, captions=["one red"] * 4, features=features, has_other=batch.has_other & False)
    assert not health.alarms(health.examine(state, batch), 100)


def test_the_gap_is_known_without_the_matching_loss(batch: MicroBatch) -> None:
    torch.manual_seed(0)
    cfg = config.load("tiny", ["augment.prob=0", "loss.match_weight_D=0", "loss.match_weight_G=0"])
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU)
    batch = dataclasses.replace(batch, has_other=torch.tensor([True, False, True, True]))
    real = image_pyramid(to_float(batch.img), levels=3)
    rows = torch.tensor([0, 2, 3])
    with torch.no_grad():
        own, others = (
            state.D(real, TextFeatures(f.tokens[i], f.mask[i], f.global_index[i]))[0][3].flatten(1).mean(dim=1)
            for f, i in ((batch.features, torch.arange(4)), (batch.features, batch.other))
        )
    found = health.examine(state, batch)["Health/match_gap"]
    assert found == pytest.approx(float((own - others)[rows].mean()), abs=1e-5)
    assert abs(found) > 1e-4


def test_an_ignored_text_sounds() -> None:
    assert health.alarms({"Health/match_gap": 0.5}, 100) == []
    assert "the text is ignored" in health.alarms({"Health/match_gap": 0.001}, 100)[0]


def test_a_blind_a_sure_and_a_steep_discriminator_sound() -> None:
    healthy = {"Health/real_gap": 2.0, "Loss/D/adv": 1.0, "Loss/D/r1": 1.3}
    assert health.alarms(healthy, 100) == []
    assert "it has learned nothing" in health.alarms(healthy | {"Health/real_gap": 0.001}, 100)[0]
    assert "it has won" in health.alarms(healthy | {"Loss/D/adv": 0.001}, 100)[0]
    assert "it has won" in health.alarms(healthy | {"Health/real_gap": 42.0}, 100)[0]
    assert "raise loss.r1_gamma" in health.alarms(healthy | {"Loss/D/r1": 1e6}, 100)[0]


def test_gradient_norm_is_the_length_of_the_gradient() -> None:
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
    optimizer = torch.optim.AdamW(layers.parameters())
    assert health.length(health.gradients_of(optimizer)) == 0
    layers[1](layers[0](torch.randn(5, 3))).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in layers.parameters() if p.grad is not None])
    torch.testing.assert_close(health.length(health.gradients_of(optimizer)), flat.norm())


def test_alarms_are_printed_when_they_are_new(caplog: pytest.LogCaptureFixture) -> None:
    def tick(**figures: float) -> dict[str, float]:
        levels = {"Health/G/spread/4x4": 0.001, "Health/G/spread/8x8": 0.5}
        names = {"gap": "Health/match_gap", "r1": "Loss/D/r1", "level": "Health/G/spread/8x8"}
        return levels | {names[name]: value for name, value in figures.items()}

    known: set[str] = set()
    for row in (tick(gap=0.002, r1=2e6), tick(gap=-0.0011, r1=3.5e7), tick(gap=0.001), tick(gap=0.5, level=0.002)):
        known = loop._sound(health.alarms(row, 100), known)
    told = [record.message for record in caplog.records]
    assert len(told) == 4
    assert [line.split()[1] for line in told] == ["4x4", "D", "D's", "8x8"]
    loop._sound(health.alarms(tick(gap=0.002), 100), known)  # it was well in between
    assert len(caplog.records) == 5


def test_a_run_writes_them(tmp_path: Path) -> None:
    import json

    cfg = config.load("tiny", ["train.total_kimg=0.064", "train.kimg_per_tick=0.032"])
    loop.train(cfg, tmp_path / "run", device=CPU)
    row = json.loads((tmp_path / "run" / "stats.jsonl").read_text().splitlines()[0])
    wanted = {
        "Health/match_gap",
        "Health/G/spread/4x4",
        "Gradients/G",
        "Gradients/D",
        "Gradients/G/adv",
        "Logits/real/0_3",
    }
    assert wanted <= row.keys()
