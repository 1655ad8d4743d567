"""The base models as presets: the paper's sizes, what each row of its ablation changes, and that every one trains."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from gigagan import config, cost
from gigagan.config import RunConfig
from gigagan.data.captions import TEMPLATES
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.evaluation.readers import SHARED_DIM, Readers
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import ClassNames, EfficientNetLite, HashedText, TextEncoder, TextFeatures, Unconditional
from gigagan.models.networks import build_generator
from gigagan.models.upsampler import Upsampler
from gigagan.training.contrast import HeadsContrast, picture_features, texture_features
from gigagan.training.micro_batches import micro_batches, other_captions
from gigagan.training.state import TrainState, updating
from gigagan.training.steps import discriminator_step, generator_step

PAPER = {  # millions of trainable parameters of G, and how near we have to come
    "paper-t2i64": (652.5, 0.01),
    "imagenet64": (209.5, 0.02),
    "paper-up512": (359.1, 0.01),
    "paper-up1024": (693.0, 0.01),
    "sr256": (359.0, 0.01),
    "imagenet-up256": (359.8, 0.01),
    "ablation-01": (27.8, 0.02),
    "ablation-02": (158.9, 0.02),
    "ablation-03": (26.2, 0.02),
    "ablation-04": (59.0, 0.02),
    "ablation-07": (80.2, 0.02),
    "ablation-08": (161.9, 0.02),
    "ablation-10": (164.0, 0.02),
}
CHANGES = {  # row: its parent, and all that differs
    2: (1, {"generator.channel_base", "generator.channel_max"}),
    3: (1, {"generator.mapping_layers"}),
    4: (
        3,
        {
            "generator.text_layers",
            "generator.attention.resolutions",
            "generator.attention.depths",
            "generator.attention.cross",
            "discriminator.text_layers",
            "discriminator.attention.resolutions",
            "discriminator.attention.depths",
        },
    ),
    5: (4, {"loss.match_weight_D", "loss.match_generated"}),
    6: (4, {"loss.match_weight_D", "loss.match_weight_G"}),
    7: (6, {"generator.num_filters"}),
    8: (7, {"generator.blocks", "generator.residual"}),
    9: (8, {"loss.clip_weight", "vision.network"}),
    10: (9, {"discriminator.multi_scale", "loss.level_weights"}),
    11: (10, {"loss.vision_weight"}),
}
BATCH = 2
LARGE = {"paper-t2i64", "ablation-12", "imagenet64", "paper-up512", "paper-up1024", "sr256", "imagenet-up256"}
SMALL = sorted(set(config.preset_names()) - LARGE)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".strip(".")).items()}


@pytest.mark.parametrize("preset", PAPER)
def test_generators_have_the_papers_size(preset: str) -> None:
    millions, tolerance = PAPER[preset]
    counted = cost.measure(config.load(preset)).generator.total.parameters / 1e6
    assert counted == pytest.approx(millions, rel=tolerance)


def test_the_base_discriminator_has_the_papers_size() -> None:
    counted = cost.measure(config.load("paper-t2i64")).discriminator.total.parameters / 1e6
    assert counted == pytest.approx(381.4, rel=0.01)


def test_the_class_conditional_pair_has_the_papers_size() -> None:
    presets = ("imagenet64", "imagenet-up256")
    counted = sum(cost.measure(config.load(p)).generator.total.parameters for p in presets) / 1e6
    assert counted == pytest.approx(569, rel=0.01)


@pytest.mark.parametrize("row", CHANGES)
def test_a_row_differs_from_its_parent_by_the_named_change(row: int) -> None:
    parent, changes = CHANGES[row]
    old, new = (flat(config.load(f"ablation-{n:02d}").model_dump()) for n in (parent, row))
    assert {key for key in new if new[key] != old[key]} == changes


def test_the_last_row_is_the_papers_model() -> None:
    assert config.load("ablation-12") == config.load("paper-t2i64")


def twin(preset: str) -> RunConfig:
    """The preset at an eighth of its widths, on words in place of CLIP's features."""
    cfg = config.load(preset)
    tree = cfg.model_dump()
    for network in (tree["generator"], tree["discriminator"]):
        for key in ("channel_base", "channel_max", "w_dim", "text_dim", "head_channel_max"):
            if network.get(key):
                network[key] = max(network[key] // 8, 16)
        network["attention"]["head_dim"] = 16
        network["text_heads"] = 2
    if tree["text"]["encoder"] in ("clip", "minilm"):
        tree["text"] |= {"encoder": "hashed", "max_tokens": 16}
    if tree["text"]["num_classes"]:
        tree["text"]["num_classes"] = 4
    side = cfg.generator.resolution
    if tree["generator"]["kind"] == "upsampler":
        side = 8 * tree["generator"]["resolution"] // tree["generator"]["input_resolution"]
        tree["data"]["crop"] = side
        tree["discriminator"]["blocks"] = [1] * (side.bit_length() - 2)
        tree["generator"]["noise_max"] = 0.1
    tree["vision"] |= {"network": "lite0", "path": "", "resolution": side}
    tree["vision"] |= {"channels": 16, "text_dim": 32, "text_heads": 2}
    tree["loss"]["r1_interval"] = 8
    tree["discriminator"]["minibatch_std"] = min(tree["discriminator"]["minibatch_std"], BATCH)
    tree["train"] |= {"batch": BATCH, "batch_gpu": BATCH, "dtype": "float32"}
    return config.from_dict(tree)


def encoder_of(cfg: RunConfig) -> TextEncoder:
    if cfg.text.encoder == "classes":
        return ClassNames(["ape", "bee", "cow", "dog"])
    return Unconditional() if cfg.text.encoder == "none" else HashedText(max_tokens=16)


def untrained_pair(network: EfficientNetLite, cfg: RunConfig, encoder: TextEncoder) -> HeadsContrast:
    """What the CLIP loss compares and styles are read by, with random weights: plumbing, with no network from disk."""
    seen = network(torch.zeros(1, 3, 8, 8), min_res=cfg.vision.resolution)
    heads = Readers(
        cells_dim=picture_features(seen).shape[1],
        texture_dim=texture_features(seen).shape[1],
        text_dim=encoder.feature_dim,
        num_styles=len(TEMPLATES),
        num_concepts=0,
        generator=torch.Generator().manual_seed(0),
    )
    return HeadsContrast(heads, torch.zeros(0, SHARED_DIM), CaptionFeatures(encoder))


def train_twin(preset: str, steps: int, network: EfficientNetLite) -> None:
    cfg = twin(preset)
    torch.manual_seed(0)
    encoder = encoder_of(cfg)
    state = TrainState(
        cfg,
        feature_dim=encoder.feature_dim,
        device=torch.device("cpu"),
        image_network=network if cfg.loss.clip_weight or cfg.loss.vision_weight or cfg.loss.perceptual_weight else None,
        contrast=untrained_pair(network, cfg, encoder) if cfg.loss.clip_weight else None,
    )
    names = ["ape", "bee", "cow", "dog"][:BATCH]
    captions = [""] * BATCH if cfg.text.encoder == "none" else names
    img = torch.randint(256, (BATCH, 3, cfg.shown_side, cfg.shown_side), dtype=torch.uint8)
    batch, before = Batch(img, captions, [""] * BATCH), [p.clone() for p in state.G.parameters()]
    values: dict[str, Any] = {}
    for step in range(steps):
        with ExitStack() as turn:
            for judge, optimizer in state.judges:
                turn.enter_context(updating(judge, optimizer))
                optimizer.zero_grad()
            for micro in micro_batches(state, batch, encoder.encode, BATCH, phase=0):  # type: ignore[arg-type]
                values = discriminator_step(state, micro, share=1.0, r1=step % 8 == 0)
            for _, optimizer in state.judges:
                optimizer.step()
        with updating(state.G, state.opt_G):
            state.opt_G.zero_grad()
            others = other_captions(state, captions)
            for micro in micro_batches(state, batch, encoder.encode, BATCH, phase=1, others=others):  # type: ignore[arg-type]
                values |= generator_step(state, micro, share=1.0)
            idle = [n for n, p in state.G.named_parameters() if p.grad is None]
            state.opt_G.step()
        state.update_ema()
        state.nimg += BATCH
    assert all(math.isfinite(float(value)) for value in values.values()), values
    assert ("Loss/G/clip" in values) == bool(cfg.loss.clip_weight)
    assert ("Loss/G/vision" in values) == bool(cfg.loss.vision_weight)
    assert not idle
    moved = [not torch.equal(a, b) for a, b in zip(before, state.G.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    "preset", ["ablation-01", "ablation-11", "imagenet64", "unconditional64", "paper-up512", "imagenet-up256", "sr256"]
)
def test_a_twin_of_each_kind_takes_a_step(preset: str, random_lite0: EfficientNetLite) -> None:
    train_twin(preset, 2, random_lite0)


@pytest.fixture
def both_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", SMALL)
def test_every_preset_draws_and_its_twin_trains(preset: str, random_lite0: EfficientNetLite) -> None:
    full_size(preset)
    train_twin(preset, 50, random_lite0)


@pytest.mark.matrix
@pytest.mark.usefixtures("both_cores")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("preset", sorted(LARGE))
def test_every_large_preset_draws_and_its_twin_trains(preset: str, random_lite0: EfficientNetLite) -> None:
    full_size(preset)
    train_twin(preset, 50, random_lite0)


@torch.no_grad()
def full_size(preset: str) -> None:
    """One forward pass of G as it is, from random features, and one of D on what comes out."""
    cfg = config.load(preset)
    kind = cfg.text.encoder
    tokens = 1 if kind in ("classes", "none") else 12
    width = {"classes": cfg.text.num_classes, "none": 0, "minilm": 384, "clip": 768}.get(kind, HashedText.feature_dim)
    torch.manual_seed(0)
    G = build_generator(cfg.generator, feature_dim=width).eval()
    mask = torch.ones(1, tokens, dtype=torch.bool)
    features = TextFeatures(torch.randn(1, tokens, width), mask, torch.zeros(1, dtype=torch.long))
    z, side = torch.randn(1, cfg.generator.z_dim), cfg.shown_side
    given = [torch.rand(1, 4, side // G.cfg.factor, side // G.cfg.factor)] if isinstance(G, Upsampler) else []
    pyramid = G(z, features, *given)
    assert [img.shape[-1] for img in pyramid] == [side >> i for i in range(cfg.generator.levels)]
    assert all(torch.isfinite(img).all() for img in pyramid)
    assert pyramid[0].std() > 0.01
    del G
    D = Discriminator(cfg.discriminator, resolution=cfg.judged_side, feature_dim=width, levels=cfg.generator.levels)
    corner = [img[..., : cfg.judged_side >> i, : cfg.judged_side >> i] for i, img in enumerate(pyramid)]
    logits = D.eval()(corner[: D.num_levels], features)
    assert all(torch.isfinite(values).all() for level in logits for values in level.values())
