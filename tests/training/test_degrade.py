"""The small pictures of an upsampler's training: what they keep, what they lose, and that a restart changes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gigagan import config
from gigagan.config import DegradeConfig
from gigagan.data.dataset import Sample, decode
from gigagan.data.loader import Batch
from gigagan.data.sampling import DrawnBatches
from gigagan.errors import ConfigError, DataError
from gigagan.models.frozen import HashedText
from gigagan.models.layers import to_float
from gigagan.training.degrade import Degradation, reduced
from gigagan.training.micro_batches import Window, micro_batches
from gigagan.training.state import TrainState


def degradation(cfg: DegradeConfig, noise_max: float = 0.2, batch: int = 6, side: int = 8) -> Degradation:
    return Degradation.draw(cfg, noise_max, batch, side, torch.Generator().manual_seed(0))


def pictures(batch: int = 6, side: int = 32) -> Tensor:
    rough = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 255
    return torch.nn.functional.interpolate(rough, size=(side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_without_noise_it_is_the_antialiased_picture() -> None:
    img = pictures()
    low = degradation(DegradeConfig(), noise_max=0.0)(img)
    assert low.shape == (6, 4, 8, 8)
    assert not low[:, 3].any()
    pillow = [
        np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).resize((8, 8), Image.Resampling.BICUBIC))
        for one in img
    ]
    ours = (low[:, :3].permute(0, 2, 3, 1) + 1) * 127.5
    assert (ours - torch.from_numpy(np.stack(pillow))).abs().max() < 2  # the same filter, but for Pillow's rounding


def test_the_level_is_that_of_the_noise() -> None:
    flat = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8)
    drawn = degradation(DegradeConfig(), batch=200)
    low = drawn(flat)
    level = low[:, 3, 0, 0]
    assert 0 <= float(level.min()) < 0.02
    assert 0.18 < float(level.max()) <= 0.2
    ratio = (low[:, :3] - low[:, :3].mean(dim=(2, 3), keepdim=True)).std(dim=(1, 2, 3)) / level
    assert ratio.median() == pytest.approx(1, abs=0.05)


def test_photographs_lose_more_and_the_rest_nothing() -> None:
    img = pictures(40)
    drawn = degradation(DegradeConfig(prob=0.5, noise=0.1), noise_max=0.0, batch=40)
    low, clean = drawn(img)[:, :3], reduced(to_float(img), 8, "bicubic")
    difference = (low - clean).abs().mean(dim=(1, 2, 3))
    assert 10 < int(drawn.spoilt.sum()) < 30
    assert not difference[~drawn.spoilt].any()
    assert (difference[drawn.spoilt] > 0.005).all()


def test_parts_are_those_of_the_whole() -> None:
    img = pictures()
    drawn = degradation(DegradeConfig(filters=("area", "bilinear", "bicubic"), prob=0.5))
    whole = drawn(img)
    parts = [drawn.part(part)(img[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert set(drawn.choice.tolist()) == {0, 1, 2}


def test_a_window_is_the_same_square_at_every_level() -> None:
    ramp = torch.arange(32.0).expand(3, 1, 32, 32)
    pyramid = [ramp, torch.nn.functional.avg_pool2d(ramp, 2), torch.nn.functional.avg_pool2d(ramp, 4)]
    window = Window.draw(16, 32, 4, 3, torch.Generator().manual_seed(0))
    shown = window(pyramid)
    assert [img.shape[-1] for img in shown] == [16, 8, 4]
    for img, left in zip(shown[0], window.corners[:, 1].tolist(), strict=True):
        assert img[0, 0].tolist() == list(range(left, left + 16))
    for coarse in shown[1:]:
        torch.testing.assert_close(coarse.mean(dim=(1, 2, 3)), shown[0].mean(dim=(1, 2, 3)))
    assert len(set(map(tuple, window.corners.tolist()))) > 1


@pytest.fixture
def state() -> TrainState:
    torch.manual_seed(0)
    cfg = config.load("tiny-up", ["train.batch=8", "train.batch_gpu=4"])
    return TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"))


def test_g_is_given_the_picture_it_is_to_restore(state: TrainState) -> None:
    side = state.cfg.shown_side
    gray = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side) * 30
    batch = Batch(gray.contiguous(), [f"number {n}" for n in range(8)], [""] * 8)
    encode = HashedText(max_tokens=16).encode
    given = []
    for size in (8, 4):
        parts = list(micro_batches(state, batch, encode, size, phase=0))  # type: ignore[arg-type]
        given.append(torch.cat([part.given[0] for part in parts]))
    assert torch.equal(*given)  # however the batch is split
    gray_given = given[0][:, :3].mean(dim=(1, 2, 3))
    torch.testing.assert_close(gray_given, to_float(gray).mean(dim=(1, 2, 3)), atol=0.06, rtol=0)


class Pictures:
    """Stands in for a set: pictures whose pixels say where they are."""

    def __init__(self, side: int) -> None:
        place = np.arange(side * side, dtype=np.int64).reshape(side, side)
        self.image = np.stack([place % 251, place % 13, place % 7], axis=2).astype(np.uint8)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        from gigagan.data.captions import Caption

        return Sample("a", self.image, (Caption("a thing"),), {})


def drawn(side: int, crop: int, place: int) -> np.ndarray:
    cfg = config.load("tiny").data.model_copy(update={"crop": crop})
    order = DrawnBatches(
        cfg,
        Pictures(side),
        range(100),
        resolution=64,
        batch=1,
        seed=0,
        start_nimg=0,
        rank=0,
        world=1,  # type: ignore[arg-type]
    )
    order.order = [0] * 100
    one = order.at(place)
    if one.bad:
        raise DataError(one.bad[0])
    return one.image


def test_a_crop_is_a_square_of_the_picture_and_the_same_each_time() -> None:
    whole = Pictures(48).image.transpose(2, 0, 1)
    places = set()
    for place in range(10):
        square = drawn(48, 16, place)
        assert np.array_equal(square, drawn(48, 16, place))
        found = [
            (y, x) for y in range(33) for x in range(33) if np.array_equal(whole[:, y : y + 16, x : x + 16], square)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 5


def test_a_picture_smaller_than_the_crop_is_left_out() -> None:
    with pytest.raises(DataError, match=r"12 x 12 px, but data\.crop is 16"):
        drawn(12, 16, 0)


def test_small_originals_are_not_enlarged_for_crops() -> None:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), 64).shape == (64, 64, 3)
    assert decode(buffer.getvalue(), 64, enlarge=False).shape == (40, 40, 3)
    assert decode(buffer.getvalue(), 32, enlarge=False).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("tiny", "data.crop=8", "are for upsamplers"),
        ("tiny", "degrade.prob=0.5", "are for upsamplers"),
        ("tiny-up", "data.crop=24", "data.crop is 24; expected a power of two from 16 to 32"),
        ("tiny-up", "discriminator.window=64", "discriminator.window is 64"),
        ("tiny-up", "generator.kind=both", "kind"),
        ("tiny-up", "generator.input_resolution=32", "expected at least 16 px in and a larger side out"),
        ("tiny-up", "generator.channels=3", "no such key"),
    ],
)
def test_what_cannot_be_is_told(preset: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(preset, [override])
