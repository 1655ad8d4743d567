"""The style read off G's pictures: its statistics and its loss by their formulas, heads that learn it, G that obeys."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gigagan import config
from gigagan.config import RunConfig
from gigagan.data.dataset import CaptionedImages, open_dataset
from gigagan.data.features import CaptionFeatures
from gigagan.data.sampling import STYLE_INDEX
from gigagan.errors import ConfigError
from gigagan.evaluation.fit import LABEL_SMOOTHING
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.models.frozen_image import ImageFeatures
from gigagan.training import contrast, steps
from gigagan.training.contrast import HeadsContrast, build_critics, save_heads, texture_features
from gigagan.training.heads import HELD_OUT, TrainedHeads, train_heads
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch

CPU = torch.device("cpu")
SIDE = 32
TEXTS = HashedText(max_tokens=8)
COLORS = {
    "a red box": (220, 30, 30),
    "a green box": (30, 200, 30),
    "a blue box": (30, 30, 220),
    "a gray box": (128, 128, 128),
}
CAPTIONS = list(COLORS)
FLAT, OUTLINE = STYLE_INDEX["flat"], STYLE_INDEX["outline"]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> CaptionedImages:
    """160 boxes of four colors, filled in one style and hatched in the other; captions name the colors alone."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    lines = []
    for k in range(160):
        # Of every fifty the first is kept from the heads while they are judged: of both styles.
        style, (caption, color) = ("flat", "outline")[k // HELD_OUT % 2], list(COLORS.items())[k % 4]
        image = np.full((SIDE, SIDE, 3), 255, np.uint8)
        y, x = rng.integers(0, SIDE - 20, 2)
        image[y : y + 20, x : x + 20][:: 1 if style == "flat" else 4] = color
        Image.fromarray(image).save(folder / f"{k}.png")
        lines.append(f'{{"file_name": "{k}.png", "text": "{caption}", "style": "{style}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return open_dataset(folder, split="train")


@pytest.fixture(scope="module")
def trained(boxes: CaptionedImages, random_lite0: EfficientNetLite) -> TrainedHeads:
    return train_heads(boxes, random_lite0, TEXTS, resolution=SIDE)


@pytest.fixture
def pair(trained: TrainedHeads) -> HeadsContrast:
    return HeadsContrast(trained.heads, trained.others, CaptionFeatures(TEXTS))


@pytest.fixture
def cfg() -> RunConfig:
    weights = ["loss.style_weight=2", f"vision.resolution={SIDE}", "loss.adv_weight=0", "loss.paired_l1_weight=1e-6"]
    return config.load("tiny", ["train.batch=4", "train.batch_gpu=4", "augment.prob=0", *weights])


def half_step(cfg: RunConfig, styles: list[int] | None) -> MicroBatch:
    return micro_batch(cfg, CAPTIONS, max_tokens=8, styles=styles)


def new_state(cfg: RunConfig, network: EfficientNetLite, pair: HeadsContrast) -> TrainState:
    torch.manual_seed(0)
    return TrainState(cfg, feature_dim=TEXTS.feature_dim, device=CPU, image_network=network, contrast=pair)


def step(state: TrainState, batch: MicroBatch) -> steps.Stats:
    with updating(state.G, state.opt_G):
        state.opt_G.zero_grad()
        stats = steps.generator_step(state, batch, share=1.0)
        state.opt_G.step()
    return stats


def test_texture_is_its_statistics_and_the_coarsest_map_is_left_out() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, c, s, s) for c, s in ((3, 8), (30, 4), (50, 2), (5, 1))]
    rows = []
    for n in range(2):
        row: list[float] = []
        for level, x in enumerate(maps[:3]):
            values = x[n].double().flatten(1)
            mean = values.mean(dim=1)
            deviation = ((values - mean[:, None]).square().mean(dim=1) + 1e-4).sqrt()
            row += mean.tolist() + deviation.tolist()
            if level == 0:
                for i, j in ((0, 1), (0, 2), (1, 2)):
                    both = ((values[i] - mean[i]) * (values[j] - mean[j])).mean()
                    row.append(float(both / deviation[i] / deviation[j]))
            if level < 2:
                row += values.max(dim=1).values.tolist() + values.min(dim=1).values.tolist()
        rows.append(row)
    found = texture_features(ImageFeatures(maps, torch.zeros(2, 1)))
    torch.testing.assert_close(found.double(), torch.tensor(rows, dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_a_flat_picture_has_a_finite_slope() -> None:
    maps = [torch.ones(1, 3, 4, 4, requires_grad=True), torch.ones(1, 3, 2, 2)]
    texture_features(ImageFeatures(maps, torch.zeros(1, 1))).sum().backward()
    assert maps[0].grad is not None
    assert bool(maps[0].grad.isfinite().all())


def test_heads_read_styles(trained: TrainedHeads) -> None:
    assert trained.styles_read == 1.0
    assert trained.heads.style is not None


def test_heads_on_shuffled_styles_read_none(boxes: CaptionedImages, random_lite0: EfficientNetLite) -> None:
    """Sabotage: with each picture under another one's style, those kept back aren't read."""
    order = np.random.default_rng(0).permutation(len(boxes))

    class Shuffled:
        path, captioned = boxes.path, True

        def __len__(self) -> int:
            return len(boxes)

        def __getitem__(self, index: int) -> object:
            return dataclasses.replace(boxes[index], meta=boxes[int(order[index])].meta)

    shuffled = train_heads(Shuffled(), random_lite0, TEXTS, resolution=SIDE)  # type: ignore[arg-type]
    assert shuffled.styles_read is not None
    assert shuffled.styles_read <= 0.75  # of 4 pictures kept back, by chance the half


def test_the_loss_is_the_smoothed_cross_entropy_of_the_styles_asked_for(
    cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast
) -> None:
    state = new_state(cfg, random_lite0, pair)
    batch = half_step(cfg, [FLAT, OUTLINE, -1, FLAT])
    with torch.no_grad():
        pyramid = state.G(batch.z, batch.features)
        logits = pair.style_logits(random_lite0(pyramid[0], min_res=SIDE)).double()
    expected = 0.0
    for row, style in zip(logits, batch.styles.tolist() if batch.styles is not None else [], strict=True):
        if style >= 0:
            shares = [math.exp(v) for v in (row - row.max()).tolist()]
            logs = [math.log(share / sum(shares)) for share in shares]
            expected -= (1 - LABEL_SMOOTHING) * logs[style] + LABEL_SMOOTHING * sum(logs) / len(logs)
    with updating(state.G, state.opt_G):
        found = steps.generator_step(state, batch, share=1.0)["Loss/G/style"]
    assert float(found) == pytest.approx(expected / 4, rel=1e-3)


def test_g_learns_the_styles_it_is_told_and_the_heads_learn_nothing(
    cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast
) -> None:
    state, wanted = new_state(cfg, random_lite0, pair), [FLAT, OUTLINE, OUTLINE, FLAT]
    before = [p.clone() for p in pair.heads.parameters()]
    first = float(step(state, half_step(cfg, wanted))["Loss/G/style"])
    for _ in range(60):
        last = float(step(state, half_step(cfg, wanted))["Loss/G/style"])
    assert last < 0.7 * first
    swapped = float(step(state, half_step(cfg, [OUTLINE, FLAT, FLAT, OUTLINE]))["Loss/G/style"])
    assert swapped > last + 0.5, "sabotage: the styles of others"
    assert all(torch.equal(a, b) for a, b in zip(before, pair.heads.parameters(), strict=True))


def test_nothing_is_asked_where_nothing_is_known(
    cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast
) -> None:
    state = new_state(cfg, random_lite0, pair)
    for styles in (None, [-1, -1, -1, -1]):  # every rank has the term, so that they add up the same ones
        assert float(step(state, half_step(cfg, styles))["Loss/G/style"]) == 0.0
    assert all(bool(p.isfinite().all()) for p in state.G.parameters())


def test_heads_without_styles_are_refused_in_one_line(
    trained: TrainedHeads,
    cfg: RunConfig,
    random_lite0: EfficientNetLite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "heads"
    save_heads(path, trained.heads, trained.others, resolution=SIDE)
    blind = {name: value for name, value in load_file(path).items() if not name.startswith("style")}
    save_file(blind, path, metadata={contrast.FORMAT: str(SIDE)})
    monkeypatch.setattr(contrast, "load_efficientnet_lite", lambda *_: random_lite0)
    cfg = config.from_dict(cfg.model_dump(mode="json") | {"vision": {**cfg.vision.model_dump(), "heads": str(path)}})
    with pytest.raises(ConfigError, match=r"no styles of the emoji set to read; set loss\.style_weight=0"):
        build_critics(cfg, CaptionFeatures(TEXTS), CPU)
