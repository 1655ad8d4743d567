"""What a step teaches: own captions real, others' captions fake, one network at a time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan import config
from gigagan.config import RunConfig
from gigagan.data.dataset import open_dataset
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import batches
from gigagan.models.attention import AttentionBlock, L2Attention
from gigagan.models.frozen import HashedText
from gigagan.models.layers import image_pyramid, to_float
from gigagan.training import steps
from gigagan.training.micro_batches import MicroBatch, micro_batches
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch

CPU = torch.device("cpu")


@pytest.fixture
def cfg() -> RunConfig:
    return config.load("tiny", ["train.batch=8", "train.batch_gpu=4", "augment.prob=0", "loss.r1_interval=1"])


@pytest.fixture
def state(cfg: RunConfig) -> TrainState:
    torch.manual_seed(0)
    return TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU)


def test_a_real_picture_travels_with_its_own_caption(cfg: RunConfig, state: TrainState, tmp_path: Path) -> None:
    """From files through loader and micro-batches: the gray level of each picture names its caption."""
    lines = []
    for k in range(20):
        Image.fromarray(np.full((16, 16, 3), 10 * k, np.uint8)).save(tmp_path / f"{k}.png")
        lines.append(f'{{"file_name": "{k}.png", "text": "picture {k}"}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = open_dataset(tmp_path, split="train", resolution=16)
    features = CaptionFeatures(HashedText(max_tokens=16))
    stream = batches(cfg.data, dataset, resolution=16, batch=8, seed=3, start_nimg=0)
    for _ in range(5):
        for micro in micro_batches(state, next(stream), features, 4, phase=0):
            named = [int(caption.split()[1]) for caption in micro.captions]
            assert (micro.img[:, 0, 0, 0] // 10).tolist() == named
            assert sorted(micro.other.tolist()) == [0, 1, 2, 3]  # of the micro-batch
            assert (micro.other != torch.arange(4)).all()
            length = micro.features.tokens.shape[1]
            encoded = HashedText(max_tokens=16).encode(micro.captions).tokens[:, :length]
            torch.testing.assert_close(micro.features.tokens, encoded, atol=2e-3, rtol=1e-3)
            assert all(micro.captions[int(o)] != micro.captions[b] for b, o in enumerate(micro.other))


def train_discriminator(state: TrainState, batch: MicroBatch) -> steps.Stats:
    stats: steps.Stats = {}
    for _ in range(60):
        with updating(state.D, state.opt_D):
            state.opt_D.zero_grad()
            stats = steps.discriminator_step(state, batch, share=1.0, r1=False)
            state.opt_D.step()
    return stats


def gap(state: TrainState, batch: MicroBatch) -> float:
    """How much higher D scores real pictures under their own captions than under others'."""
    exits = state.D.phi(image_pyramid(to_float(batch.img), levels=state.D.num_levels))
    t_D = state.D.text(batch.features).t_global
    own, other = (state.D.judge(exits, t)[0][state.D.num_levels].mean() for t in (t_D, t_D[batch.other]))
    return float(own - other)


def test_d_learns_own_captions_real_and_others_fake(cfg: RunConfig, state: TrainState) -> None:
    """Train D alone on fixed pictures: real scores high with its caption, low with another's, generated low."""
    batch = micro_batch(cfg, ["one red", "two green", "three blue", "four gray"])
    stats = train_discriminator(state, batch)
    assert stats["Scores/real"] > 1
    assert stats["Scores/gen"] < -1
    assert gap(state, batch) > 4


def test_swapped_captions_are_caught(cfg: RunConfig, state: TrainState) -> None:
    """Sabotage: shown its own caption as another's, D doesn't learn to tell the two apart."""
    batch = micro_batch(cfg, ["one red", "two green", "three blue", "four gray"])
    train_discriminator(state, dataclasses.replace(batch, other=torch.arange(4)))
    assert gap(state, batch) < 1


def test_words_go_to_attention_and_captions_to_the_style(cfg: RunConfig, state: TrainState) -> None:
    """Given words, attention and the 4 px layers follow them, whatever the caption says to finer layers."""
    own = micro_batch(cfg, ["one red", "two green", "three blue", "four gray"])
    words = HashedText(max_tokens=16).encode(["five", "six", "seven", "eight"])
    w, pyramid = steps._generated(state, dataclasses.replace(own, words=words))
    of_own, of_words = (state.G.mapping(own.z, state.G.text(f).t_global) for f in (own.features, words))
    torch.testing.assert_close(w, of_own)
    coarse = cfg.generator.blocks[0]
    ws = torch.stack([of_words] * coarse + [of_own] * (state.G.num_ws - coarse), dim=1)
    for level, expected in zip(pyramid, state.G.synthesize(ws, state.G.text(words)), strict=True):
        torch.testing.assert_close(level, expected)
    of_all_words = state.G.synthesize(of_words, state.G.text(words))
    torch.testing.assert_close(pyramid[-1], of_all_words[-1])
    assert not torch.allclose(pyramid[0], of_all_words[0]), "captions are read at all"


def test_only_the_network_whose_turn_it_is_collects_gradients(cfg: RunConfig, state: TrainState) -> None:
    batch = micro_batch(cfg, ["a", "b", "c", "d"])
    with updating(state.D, state.opt_D):
        steps.discriminator_step(state, batch, share=1.0, r1=True)
    assert all(p.grad is None for p in state.G.parameters())
    assert all(p.grad is not None for p in state.D.parameters())
    state.opt_D.zero_grad()
    with updating(state.G, state.opt_G):
        steps.generator_step(state, batch, share=1.0)
    assert all(p.grad is None for p in state.D.parameters())
    idle = [n for n, p in state.G.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_generator_step_raises_the_scores_of_its_pictures(cfg: RunConfig, state: TrainState) -> None:
    batch = micro_batch(cfg, ["a", "b", "c", "d"])
    first = steps.generator_step
    values = []
    for _ in range(20):
        with updating(state.G, state.opt_G):
            state.opt_G.zero_grad()
            values.append(float(first(state, batch, share=1.0)["Loss/G/adv"]))
            state.opt_G.step()
    assert values[-1] < values[0] * 0.8


def test_accumulated_gradients_are_those_of_the_whole_batch(cfg: RunConfig, state: TrainState) -> None:
    whole = micro_batch(cfg, [f"caption {k}" for k in range(8)])
    no_match = config.load("tiny", ["loss.match_weight_D=0", "augment.prob=0"])  # pairs are drawn within a micro-batch
    state.cfg = no_match
    parts = [
        dataclasses.replace(
            whole,
            img=whole.img[p],
            captions=whole.captions[p],
            features=type(whole.features)(
                whole.features.tokens[p], whole.features.mask[p], whole.features.global_index[p]
            ),
            z=whole.z[p],
            augmentation=whole.augmentation.part(p),
            other=torch.arange(4),
            has_other=torch.ones(4, dtype=torch.bool),
        )
        for p in (slice(0, 4), slice(4, 8))
    ]
    gradients = []
    for batch_parts, share in (([whole], 1.0), (parts, 0.5)):
        with updating(state.D, state.opt_D):
            state.opt_D.zero_grad()
            for part in batch_parts:
                steps.discriminator_step(state, part, share=share, r1=True)
            gradients.append([p.grad.clone() for p in state.D.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_frozen_stages_stay(cfg: RunConfig) -> None:
    frozen = TrainState(config.load("tiny", ["train.freeze_D=1"]), feature_dim=HashedText.feature_dim, device=CPU)
    with updating(frozen.D, frozen.opt_D):
        steps.discriminator_step(frozen, micro_batch(cfg, ["a", "b"]), share=1.0, r1=False)
    finest, *rest = frozen.D.stages.values()
    assert all(p.grad is None for p in finest.parameters())
    assert all(p.grad is not None for stage in rest for p in stage.parameters())


def test_optimizer_groups(state: TrainState) -> None:
    """Attention decays by 0.01, all else by 1e-5; lazy R1 shrinks D's rate."""
    names = {id(p): n for n, p in state.G.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in state.opt_G.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    stacks = [
        m for level in state.G.synthesis.modules() if isinstance(level, AttentionBlock) for m in level.parameters()
    ]
    layers = [p for m in state.G.text.modules() if isinstance(m, L2Attention) for p in m.parameters()]
    attention = {names[id(p)] for p in [*stacks, *layers]}
    assert {name for name, value in decay.items() if value == 0.01} == attention
    assert {value for name, value in decay.items() if name not in attention} == {1e-5}
    assert {"text.layers.0.mlp.expand.weight", "mapping.layers.0.weight"} <= decay.keys() - attention
    assert state.opt_D.param_groups[0]["lr"] == pytest.approx(0.0025 / 2)
    assert state.opt_G.param_groups[0]["betas"] == (0.0, 0.99)


def test_g_stands_still_while_all_its_weights_are_0() -> None:
    """A schedule may begin with nothing to learn from."""
    later = ["loss.adv_weight=[[0, 0], [10, 1]]", "loss.paired_l1_weight=0"]
    cfg = config.load("tiny", ["train.batch=4", "train.batch_gpu=4", *later])
    torch.manual_seed(0)
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU)
    with updating(state.G, state.opt_G):
        assert steps.generator_step(state, micro_batch(cfg, ["a", "b", "c", "d"]), share=1.0) == {}
        assert not any(p.grad is not None and p.grad.any() for p in state.G.parameters())
