"""The CLIP loss: its equation, the heads that stand for CLIP offline, CLIP itself, and what a mistake is told."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from gigagan import config, losses
from gigagan.config import RunConfig
from gigagan.data.dataset import CaptionedImages, open_dataset
from gigagan.data.features import CaptionFeatures
from gigagan.errors import CheckpointError, ConfigError, DataError
from gigagan.evaluation.features import as_batch
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.models.frozen_clip_pair import ClipPair, load_clip_pair
from gigagan.models.layers import to_float
from gigagan.training import contrast, steps
from gigagan.training.contrast import Contrast, HeadsContrast, build_critics, load_heads, save_heads
from gigagan.training.heads import TrainedHeads, train_heads
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch

CPU = torch.device("cpu")
SIDE = 32
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "gray": (128, 128, 128)}
SHAPES = ("square", "bar", "column", "dot")
TEXTS = HashedText(max_tokens=8)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_clip_contrastive_is_equation_9() -> None:
    torch.manual_seed(0)
    pictures, captions, scale = unit(4, 6), unit(7, 6), 9.0
    own = captions[:4]
    expected = []
    for b in range(4):
        scores = [float((scale * pictures[b] @ captions[n]).exp()) for n in range(7)]
        expected.append(-torch.tensor(scores[b] / sum(scores), dtype=torch.float64).log())
    value = losses.clip_contrastive(pictures, own, captions, scale=scale)
    torch.testing.assert_close(value, torch.stack(expected))
    # Its own caption counts once, whether it is among the others, twice or not at all.
    for others in (captions[1:], torch.cat([captions, own[:1]])):
        torch.testing.assert_close(losses.clip_contrastive(pictures, own, others, scale=scale)[0], value[0])


def test_a_picture_is_not_told_from_what_is_true_of_it() -> None:
    torch.manual_seed(0)
    pictures, captions, scale = unit(4, 6), unit(7, 6), 9.0
    own, true = captions[:4], torch.zeros(4, 7, dtype=torch.bool)
    true[0, [5, 6]] = true[2, 1] = True
    value = losses.clip_contrastive(pictures, own, captions, scale=scale, true=true)
    for b in range(4):
        left = captions[~true[b]]
        alone = losses.clip_contrastive(pictures[b : b + 1], own[b : b + 1], left, scale=scale)
        torch.testing.assert_close(value[b : b + 1], alone)
    plain = losses.clip_contrastive(pictures, own, captions, scale=scale)
    assert (value < plain).tolist() == [True, False, True, False]


def test_clip_contrastive_without_others_is_0_and_its_gradient_is_right() -> None:
    torch.manual_seed(0)
    pictures, own = unit(3, 5).requires_grad_(), unit(3, 5)
    assert losses.clip_contrastive(pictures, own, own[:0], scale=5.0).tolist() == [0, 0, 0]
    assert torch.autograd.gradcheck(lambda p: losses.clip_contrastive(p, own, own, scale=5.0), pictures)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CaptionedImages:
    """160 pictures of four colored shapes at random places, captioned."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    lines = []
    for k in range(160):
        color, shape = list(COLORS)[k % 4], SHAPES[k // 4 % 4]
        image = np.full((SIDE, SIDE, 3), 255, np.uint8)
        height, width = {"square": (16, 16), "bar": (6, 26), "column": (26, 6), "dot": (6, 6)}[shape]
        y, x = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
        image[y : y + height, x : x + width] = COLORS[color]
        Image.fromarray(image).save(folder / f"{k}.png")
        lines.append(f'{{"file_name": "{k}.png", "text": "a {color} {shape}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return open_dataset(folder, split="train")


@pytest.fixture(scope="module")
def trained(shapes: CaptionedImages, random_lite0: EfficientNetLite) -> TrainedHeads:
    return train_heads(shapes, random_lite0, TEXTS, resolution=SIDE)


@pytest.fixture
def pair(trained: TrainedHeads) -> HeadsContrast:
    return HeadsContrast(trained.heads, trained.others, CaptionFeatures(TEXTS))


def looked_at(shapes: CaptionedImages, items: list[int]) -> tuple[Tensor, list[str]]:
    samples = [shapes[i] for i in items]
    return to_float(as_batch([s.image for s in samples])), [s.captions[0].text for s in samples]


def test_heads_tell_captions_apart(
    shapes: CaptionedImages, random_lite0: EfficientNetLite, pair: HeadsContrast, trained: TrainedHeads
) -> None:
    img, captions = looked_at(shapes, list(range(16)))
    assert len(set(captions)) == 16
    assert trained.others.shape == (16, 256)
    seen = random_lite0(img, min_res=SIDE)
    own = losses.clip_contrastive(pair.picture(seen), pair.text(captions), pair.others, scale=pair.scale).mean()
    turned = captions[1:] + captions[:1]
    others = losses.clip_contrastive(pair.picture(seen), pair.text(turned), pair.others, scale=pair.scale).mean()
    assert own < 0.5 * np.log(16)
    assert others > own + 1


def test_heads_on_shuffled_captions_learn_nothing(
    shapes: CaptionedImages, random_lite0: EfficientNetLite, trained: TrainedHeads
) -> None:
    """Sabotage: with each picture under another one's caption, those kept back aren't found."""
    order = np.random.default_rng(1).permutation(len(shapes))

    class Shuffled:
        path, captioned = shapes.path, True

        def __len__(self) -> int:
            return len(shapes)

        def __getitem__(self, index: int) -> object:
            return dataclasses.replace(shapes[index], captions=shapes[int(order[index])].captions)

    shuffled = train_heads(Shuffled(), random_lite0, TEXTS, resolution=SIDE)  # type: ignore[arg-type]
    assert trained.recall >= 0.75
    assert shuffled.recall <= 0.5  # of 4 pictures kept back, by chance a quarter


def test_larger_pictures_are_shown_at_the_heads_resolution(shapes: CaptionedImages) -> None:
    sides = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)

        def forward(self, img: Tensor, min_res: int) -> None:
            sides.append((img.shape[2], min_res))
            raise StopIteration

    with pytest.raises(StopIteration):
        train_heads(shapes, Watched(), TEXTS, resolution=SIDE // 2)  # type: ignore[arg-type]
    assert sides == [(SIDE // 2, SIDE // 2)]


def test_few_pictures_are_refused(tmp_path: Path, random_lite0: EfficientNetLite) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    with pytest.raises(DataError, match="1 pictures can be used; the heads need at least 100"):
        train_heads(open_dataset(tmp_path), random_lite0, TEXTS, resolution=SIDE)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="pictures without captions"):
        train_heads(open_dataset(tmp_path), random_lite0, TEXTS, resolution=SIDE)


def test_a_file_of_heads_comes_back(trained: TrainedHeads, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "heads.safetensors"
    save_heads(path, trained.heads, trained.others, resolution=SIDE)
    heads, others = load_heads(path, resolution=SIDE)
    for name, value in trained.heads.state_dict().items():
        assert torch.equal(heads.state_dict()[name], value), name
    torch.testing.assert_close(others, trained.others, atol=1e-3, rtol=0)
    assert [p.name for p in path.parent.iterdir()] == ["heads.safetensors"]


def test_a_wrong_file_of_heads_is_one_line(trained: TrainedHeads, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    with pytest.raises(CheckpointError, match="no such file; write it with `gigagan data heads"):
        load_heads(path, resolution=SIDE)
    save_heads(path, trained.heads, trained.others, resolution=SIDE)
    with pytest.raises(CheckpointError, match="pictures at 32 px, but the network sees them at 64 px"):
        load_heads(path, resolution=64)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="isn't a whole file of heads"):
        load_heads(path, resolution=SIDE)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no heads"):
        load_heads(path, resolution=SIDE)


@pytest.fixture
def cfg() -> RunConfig:
    weights = ["loss.clip_weight=1", "vision.text_dim=32", "vision.channels=16", f"vision.resolution={SIDE}"]
    return config.load("tiny", ["train.batch=4", "train.batch_gpu=4", "augment.prob=0", *weights])


def half_step(cfg: RunConfig, captions: list[str], pair: Contrast) -> MicroBatch:
    return micro_batch(cfg, captions, max_tokens=8, others=pair.text(captions))


def train_generator(state: TrainState, batch: MicroBatch, count: int) -> list[float]:
    values = []
    for _ in range(count):
        with updating(state.G, state.opt_G):
            state.opt_G.zero_grad()
            values.append(float(steps.generator_step(state, batch, share=1.0)["Loss/G/clip"]))
            state.opt_G.step()
    return values


def test_g_learns_to_fit_its_captions(cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast) -> None:
    """G alone against the contrast; frozen networks stay as they are."""
    torch.manual_seed(0)
    cfg = cfg.model_copy(update={"loss": cfg.loss.model_copy(update={"adv_weight": 0.0, "paired_l1_weight": 0.0})})
    state = TrainState(cfg, feature_dim=TEXTS.feature_dim, device=CPU, image_network=random_lite0, contrast=pair)
    before = [p.clone() for p in pair.heads.parameters()]
    values = train_generator(
        state, half_step(cfg, ["a red square", "a green bar", "a blue column", "a gray dot"], pair), 40
    )
    assert values[-1] < 0.7 * values[0]
    assert not any(p.requires_grad for p in [*random_lite0.parameters(), *pair.heads.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(before, pair.heads.parameters(), strict=True))


def test_borrowed_captions_that_are_true_are_left_out(
    cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast
) -> None:
    torch.manual_seed(0)
    state = TrainState(cfg, feature_dim=TEXTS.feature_dim, device=CPU, image_network=random_lite0, contrast=pair)
    captions, borrowed = ["a square in red", "a green bar"], ["a red square", "a blue column", "a green dot"]

    def loss(true: list[tuple[str, ...]] | None, borrowed: list[str]) -> float:
        pair.others = pair.text(borrowed).half().float()  # as a file holds them
        part = dataclasses.replace(half_step(cfg, captions, pair), true=true)
        with updating(state.G, state.opt_G):
            return float(steps.generator_step(state, part, share=1.0)["Loss/G/clip"])

    true = [("a red square", "a blue column"), ("a red square", "a blue column", "nothing like it")]
    assert loss(true, borrowed) == pytest.approx(loss(None, borrowed[2:]), abs=1e-5)
    assert loss([(), ()], borrowed) == loss(None, borrowed)
    assert loss([("a red square",), ()], borrowed) < loss(None, borrowed)


def test_micro_batches_are_told_from_the_whole_batch(
    cfg: RunConfig, random_lite0: EfficientNetLite, pair: HeadsContrast
) -> None:
    torch.manual_seed(0)
    pair.others = pair.others[:0]
    state = TrainState(cfg, feature_dim=TEXTS.feature_dim, device=CPU, image_network=random_lite0, contrast=pair)
    whole = ["a red square", "a green bar", "a blue column", "a gray dot"]
    part = half_step(cfg, whole[:2], pair)
    with updating(state.G, state.opt_G):
        few = float(steps.generator_step(state, part, share=1.0)["Loss/G/clip"])
        more = float(
            steps.generator_step(state, dataclasses.replace(part, others=pair.text(whole)), share=1.0)["Loss/G/clip"]
        )
    assert more > few


@pytest.fixture(scope="module")
def clip(clip_checkpoint: Path) -> ClipPair:
    return load_clip_pair(str(clip_checkpoint))


def test_clip_is_transformers_clip(clip: ClipPair, clip_checkpoint: Path) -> None:
    """Embeddings equal those of its own get_image_features and get_text_features; maps are its hidden states."""
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(clip_checkpoint).eval()
    torch.manual_seed(0)
    img = torch.rand(2, 3, clip.side, clip.side) * 2 - 1  # its own size: nothing is resized
    mean, deviation = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pixels = ((img + 1) / 2 - mean) / deviation
    captions = ["a red apple", "Red"]
    ids = [clip.tokenizer.ids(caption) for caption in captions]
    with torch.no_grad():
        pictures = model.get_image_features(pixel_values=pixels)
        states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        texts = [model.get_text_features(input_ids=torch.tensor([one])) for one in ids]
        seen = clip(img)
    vectors = [getattr(x, "pooler_output", x) for x in (pictures, *texts)]
    torch.testing.assert_close(clip.picture(seen), F.normalize(vectors[0], dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.text(captions), F.normalize(torch.cat(vectors[1:]), dim=1), atol=1e-5, rtol=1e-4)
    assert [tuple(x.shape) for x in seen.maps] == [(2, 32, 2, 2)] * 3
    for x, layer in zip(seen.maps, (1, 2, 3), strict=True):  # a third, two thirds and all of three layers
        torch.testing.assert_close(x[:, :, 1, 0], states[layer][:, 1 + 2], atol=1e-5, rtol=1e-4)
    assert clip.scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)


def test_clip_is_shown_a_picture_of_any_side_at_its_own(clip: ClipPair) -> None:
    torch.manual_seed(0)
    img = torch.rand(2, 3, 3 * clip.side, 3 * clip.side) * 2 - 1
    reduced = F.interpolate(img, size=(clip.side, clip.side), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(clip.picture(clip(img)), clip.picture(clip(reduced)), atol=1e-5, rtol=1e-4)


def test_a_run_looks_through_clip(cfg: RunConfig, clip_checkpoint: Path) -> None:
    """V and the contrast on CLIP's towers: G learns, CLIP doesn't."""
    torch.manual_seed(0)
    overrides = {"vision": cfg.vision.model_copy(update={"network": "clip", "path": str(clip_checkpoint)})}
    overrides |= {"loss": cfg.loss.model_copy(update={"vision_weight": 1.0, "perceptual_weight": 1.0})}
    cfg = cfg.model_copy(update=overrides)
    network, pair = build_critics(cfg, CaptionFeatures(TEXTS), CPU)
    assert isinstance(network, ClipPair)
    assert pair is network
    state = TrainState(cfg, feature_dim=TEXTS.feature_dim, device=CPU, image_network=network, contrast=pair)
    batch = half_step(cfg, ["red", "green", "blue", "gray"], pair)
    assert state.V is not None
    with updating(state.D, state.opt_D), updating(state.V, state.opt_V):
        stats = steps.discriminator_step(state, batch, share=1.0, r1=True)
    assert all(p.grad is not None for p in state.V.parameters())
    values = train_generator(state, batch, 5)
    assert all(np.isfinite(values))
    assert all(torch.isfinite(value) for value in stats.values())
    assert all(p.grad is None for p in network.network.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.clip_weight=1", "vision.network=clip"], "vision.path is empty.*clip-vit-base-patch32.*sha256"),
        (["loss.vision_weight=1", "vision.network=clip", "vision.path=nowhere"], "nowhere/model.safetensors: no such"),
        (["loss.clip_weight=1"], "vision.heads is empty; .*gigagan data heads"),
    ],
)
def test_missing_networks_are_one_line(
    overrides: list[str], message: str, random_lite0: EfficientNetLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Callable[..., EfficientNetLite] = lambda *_: random_lite0  # noqa: E731
    monkeypatch.setattr(contrast, "load_efficientnet_lite", load)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        build_critics(config.load("tiny", overrides), CaptionFeatures(TEXTS), CPU)
