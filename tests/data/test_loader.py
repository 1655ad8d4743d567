"""The training order: a function of the seed and the place alone; captions, backgrounds and bad samples."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan.config import DataConfig
from gigagan.data.captions import COLORS, TEMPLATES
from gigagan.data.dataset import CaptionedImages, open_dataset
from gigagan.data.loader import BadSamples, Batch, batches
from gigagan.data.sampling import Drawn, composite
from gigagan.errors import ConfigError, DataError

Picture = tuple[str, bytes, str]


def take(dataset: CaptionedImages, count: int, *, cfg: DataConfig | None = None, **changes: int) -> list[Batch]:
    arguments = {"resolution": 8, "batch": 6, "seed": 0, "start_nimg": 0} | changes
    stream = batches(cfg or DataConfig(), dataset, **arguments)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.captions == b.captions and a.keys == b.keys and torch.equal(a.img, b.img)
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def dataset(emoji_set: Path) -> CaptionedImages:
    return open_dataset(emoji_set, resolution=8)


def test_batch_is_what_it_says(dataset: CaptionedImages) -> None:
    batch = take(dataset, 1)[0]
    assert batch.img.shape == (6, 3, 8, 8)
    assert batch.img.dtype == torch.uint8
    assert len(batch.captions) == len(batch.keys) == 6


def test_a_restart_goes_on_where_it_stopped(dataset: CaptionedImages) -> None:
    whole = take(dataset, 8)
    assert same(whole[3:], take(dataset, 5, start_nimg=18))
    assert not same(whole[:5], take(dataset, 5, start_nimg=6))
    assert not same(whole, take(dataset, 8, seed=1))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_batch_of_one_process(dataset: CaptionedImages, world: int) -> None:
    whole = take(dataset, 3)
    ranks = [take(dataset, 3, rank=rank, world=world) for rank in range(world)]
    for k, batch in enumerate(whole):
        assert [key for part in ranks for key in part[k].keys] == batch.keys
        assert torch.equal(torch.cat([part[k].img for part in ranks]), batch.img)


def test_the_batch_size_changes_nothing_but_the_cuts(dataset: CaptionedImages) -> None:
    large, small = take(dataset, 2, batch=12), take(dataset, 8, batch=3)
    assert [key for batch in large for key in batch.keys] == [key for batch in small for key in batch.keys]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_change_nothing(dataset: CaptionedImages) -> None:
    assert same(take(dataset, 4), take(dataset, 4, cfg=DataConfig(num_workers=2)))


def test_an_epoch_shows_each_picture_once_and_the_next_in_another_order(dataset: CaptionedImages) -> None:
    count = len(dataset)
    first, second = take(dataset, 2, batch=count)
    assert sorted(first.keys) == sorted(second.keys) == sorted(dataset.key(i) for i in range(count))
    assert first.keys != second.keys


def test_far_ahead_is_as_near(dataset: CaptionedImages) -> None:
    assert len(take(dataset, 1, start_nimg=10**10)[0].keys) == 6


def test_shares_of_captions(dataset: CaptionedImages) -> None:
    kinds: dict[str, str] = {}
    for i in range(len(dataset)):
        for caption in dataset[i].captions:
            kind = "background" if caption.background else "styled" if caption.styled else "styleless"
            kinds[caption.text] = kind
    cfg = DataConfig(styleless_prob=0.2, background_prob=0.1)
    drawn = Counter(kinds[text] for batch in take(dataset, 10, cfg=cfg, batch=120) for text in batch.captions)
    assert drawn["background"] / 1200 == pytest.approx(0.1, abs=0.02)
    assert drawn["styleless"] / 1200 == pytest.approx(0.9 * 0.2, abs=0.03)

    for cfg, kind in (
        (DataConfig(background_prob=1.0), "background"),
        (DataConfig(background_prob=0.0, styleless_prob=1.0), "styleless"),
        (DataConfig(background_prob=0.0, styleless_prob=0.0), "styled"),
    ):
        assert {kinds[text] for text in take(dataset, 1, cfg=cfg, batch=24)[0].captions} == {kind}


def test_words_of_another_style_are_of_the_same_thing(dataset: CaptionedImages) -> None:
    by_key = {dataset.key(i): dataset[i] for i in range(len(dataset))}
    cfg = DataConfig(restyled_prob=1.0, background_prob=0.2, styleless_prob=0.2)
    batch = take(dataset, 1, cfg=cfg, batch=240)[0]
    assert batch.words is not None
    seen = set()
    for key, text, words in zip(batch.keys, batch.captions, batch.words, strict=True):
        sample = by_key[key]
        caption = next(one for one in sample.captions if one.text == text)
        if caption.background or not caption.styled:
            assert words == text
            continue
        style = next(s for s, all_ in TEMPLATES.items() if words in [t.format(X=sample.meta["noun"]) for t in all_])
        assert style != sample.meta["style"]
        seen.add(style)
    assert seen == set(TEMPLATES), "every style gets its turn"


def test_words_of_another_style_have_a_share_and_none_unless_asked(dataset: CaptionedImages) -> None:
    cfg = DataConfig(restyled_prob=0.3, background_prob=0.0, styleless_prob=0.0)
    batch = take(dataset, 1, cfg=cfg, batch=1200)[0]
    assert batch.words is not None
    changed = [words != text for words, text in zip(batch.words, batch.captions, strict=True)]
    assert sum(changed) / 1200 == pytest.approx(0.3, abs=0.05)
    assert take(dataset, 1)[0].words is None


def test_words_of_another_style_need_styles(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}')
    with pytest.raises(DataError, match=r"data\.restyled_prob needs a noun and a style"):
        take(open_dataset(tmp_path, resolution=8), 20, cfg=DataConfig(restyled_prob=1.0))


def test_the_style_is_given_and_whether_the_caption_says_it(dataset: CaptionedImages) -> None:
    by_key = {dataset.key(i): dataset[i] for i in range(len(dataset))}
    batch = take(dataset, 1, cfg=DataConfig(styleless_prob=0.5), batch=120)[0]
    assert batch.styles is not None
    assert batch.styled is not None
    for key, text, style, styled in zip(
        batch.keys, batch.captions, batch.styles.tolist(), batch.styled.tolist(), strict=True
    ):
        says = next(one for one in by_key[key].captions if one.text == text).styled
        assert style == list(TEMPLATES).index(by_key[key].meta["style"])
        assert styled == says
    assert set(batch.styled.tolist()) == {True, False}


def test_captions_that_are_true_of_a_picture_come_with_it(dataset: CaptionedImages) -> None:
    """Its own first caption; where the drawn one names no style, that of every style."""
    by_key = {dataset.key(i): dataset[i] for i in range(len(dataset))}
    batch = take(dataset, 1, cfg=DataConfig(styleless_prob=0.5), batch=120)[0]
    assert batch.true is not None
    assert batch.styled is not None
    for key, styled, true in zip(batch.keys, batch.styled.tolist(), batch.true, strict=True):
        sample = by_key[key]
        every = {texts[0].format(X=sample.meta["noun"]) for texts in TEMPLATES.values()}
        assert sample.captions[0].text in every
        assert len(true) == len(set(true))
        assert set(true) == ({sample.captions[0].text} if styled else every)


def test_pictures_without_styles_have_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}')
    batch = take(open_dataset(tmp_path, resolution=8), 1)[0]
    assert batch.styles is None
    assert batch.styled is None


def test_the_background_is_the_color_that_the_caption_names(dataset: CaptionedImages) -> None:
    batch = take(dataset, 1, cfg=DataConfig(background_prob=1.0), batch=24)[0]
    for img, caption in zip(batch.img, batch.captions, strict=True):
        assert tuple(img[:, 0, 0].tolist()) == COLORS[caption.split()[-2]]
    for img in take(dataset, 1, cfg=DataConfig(background_prob=0.0), batch=24)[0].img:
        assert img[:, 0, 0].tolist() == [255, 255, 255]


def test_composite_against_the_formula() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (5, 7, 4), np.uint8)
    alpha = image[..., 3:].astype(np.float64) / 255
    exact = image[..., :3] * alpha + np.array([10.0, 200.0, 30.0]) * (1 - alpha)
    assert abs(composite(image, (10, 200, 30)) - exact).max() <= 0.5 + 1e-9
    assert np.array_equal(composite(image[..., :3], (10, 200, 30)), image[..., :3])


def test_mirroring(pictures: list[Picture], shard_set: Callable[..., Path]) -> None:
    dataset = open_dataset(shard_set(pictures), resolution=8)
    plain = take(dataset, 2, cfg=DataConfig(flip_prob=0.0))
    mirrored = take(dataset, 2, cfg=DataConfig(flip_prob=1.0))
    for a, b in zip(plain, mirrored, strict=True):
        assert torch.equal(a.img, b.img.flip(3))
        assert a.captions == b.captions


def corrupt(folder: Path, count: int) -> None:
    """Folder set of 200 pictures, the first `count` of which are no pictures."""
    folder.mkdir()
    good = Image.fromarray(np.full((8, 8, 3), 7, np.uint8))
    lines = []
    for i in range(200):
        path = folder / f"{i:03d}.png"
        if i < count:
            path.write_bytes(b"no picture")
        else:
            good.save(path)
        lines.append(json.dumps({"file_name": path.name, "text": f"picture {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_bad_samples_are_replaced_counted_and_named(tmp_path: Path) -> None:
    corrupt(tmp_path / "set", 4)
    dataset = open_dataset(tmp_path / "set", resolution=8)
    stream = batches(DataConfig(), dataset, resolution=8, batch=200, seed=0, start_nimg=0)
    batch = next(stream)
    stream.close()

    assert Counter(batch.keys)["004.png"] == 5  # once as itself and for each of the four before it
    assert sum(Counter(batch.keys).values()) == 200
    assert (batch.img == 7).all()
    assert stream.bad.count == 1 + 2 + 3 + 4
    assert len(stream.bad.names) == 4
    assert all("isn't a whole PNG" in name for name in stream.bad.names)
    assert same([batch], take(dataset, 1, batch=200))


def test_more_than_a_hundred_in_a_row_stop_the_run(tmp_path: Path) -> None:
    corrupt(tmp_path / "set", 150)
    dataset = open_dataset(tmp_path / "set", resolution=8)
    with pytest.raises(DataError, match="in a row"):
        take(dataset, 40)


def _drawn(key: str, bad: int = 0) -> Drawn:
    return Drawn(np.zeros((3, 1, 1), np.uint8), "x", "x", -1, True, (), key, ("x: broken",) * bad)


def test_thresholds() -> None:
    exactly = BadSamples()
    exactly.add(_drawn("a", bad=100))
    exactly.add(_drawn("a", bad=100))
    assert (exactly.in_a_row, exactly.count, exactly.seen) == (0, 200, 202)  # under 10,000 the share isn't judged
    with pytest.raises(DataError, match="101 samples in a row"):
        BadSamples().add(_drawn("", bad=101))

    rare, frequent = BadSamples(), BadSamples()
    for i in range(12_000):
        rare.add(_drawn("a", bad=int(i % 20 == 0)))
    assert rare.count / rare.seen < 0.05

    def run() -> None:
        for i in range(12_000):
            frequent.add(_drawn("a", bad=int(i % 18 == 0)))

    with pytest.raises(DataError, match=r"of 10,001 samples can't be used \(first x: broken\)"):
        run()


def test_a_batch_that_ranks_do_not_divide(dataset: CaptionedImages) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        take(dataset, 1, batch=7, world=2)


def test_batches_are_frozen(dataset: CaptionedImages) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        take(dataset, 1)[0].keys = []  # type: ignore[misc]
