"""The evaluator of a small world reads it, and its figures fall when pictures are exchanged."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gigagan.data.dataset import Caption, Sample
from gigagan.errors import DataError
from gigagan.evaluation import report
from gigagan.evaluation.evaluate import Figure, Request, evaluate, plan, reference
from gigagan.evaluation.evaluator import Evaluator, prepare
from gigagan.evaluation.features import FeatureNetwork
from gigagan.evaluation.real import hash_data, read_real
from gigagan.models.frozen import HashedText

pytest.importorskip("torchmetrics")
World = list[Sample]
Painter = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def evaluator(world: World, network: FeatureNetwork, cache: Path) -> Evaluator:
    return prepare(world, "world", network, "random", HashedText(), cache=cache)


def _ideal(requests: list[Request], world: World) -> list[NDArray[np.uint8]]:
    """What a perfect model draws: the real picture of each prompt."""
    return [world[r.item].image for r in requests]


def _by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {f.name: f for f in figures}


def _value(figures: list[Figure], start: str) -> float:
    return next(f.value for f in figures if f.name.startswith(start))


def test_plan_is_balanced_uncurated_and_within_its_split(evaluator: Evaluator) -> None:
    real = evaluator.real
    requests = plan(real, "train", 9)
    main = [r for r in requests if r.role == "main"]
    assert Counter(real.pictures[r.item].style for r in main) == dict.fromkeys(real.styles, 3)
    assert [r.seed for r in main] == list(range(9))
    assert {real.pictures[r.item].split for r in requests} == {"train"}
    assert requests == plan(real, "train", 9)
    assert requests != plan(real, "train", 9, seed=1)
    assert all("background" not in r.text for r in requests)
    assert len({(r.text, r.seed) for r in requests}) == len(requests)
    # The others that they are compared with are other pictures, of the same styles.
    others = reference(real, [r.item for r in main], 0)
    assert not set(others) & {r.item for r in main}
    assert Counter(real.pictures[i].style for i in others) == dict.fromkeys(real.styles, 3)
    with pytest.raises(DataError, match="splits are test_pair, train"):
        plan(real, "test", 9)


def test_real_pictures_are_read_and_exchanged_ones_are_not(evaluator: Evaluator, world: World) -> None:
    requests = plan(evaluator.real, "train", 15)
    ideal = _ideal(requests, world)
    good = evaluate(ideal, requests, evaluator, world).figures
    assert _value(good, "style") >= 0.9
    assert _value(good, "concept R@1") >= 0.8
    assert _value(good, "text to image R@1") >= 0.8
    assert _value(good, "Frechet distance over") == pytest.approx(1, abs=1e-3)
    # Each picture goes to the next prompt, which is of another style and mostly of another concept.
    bad = evaluate(ideal[1:] + ideal[:1], requests, evaluator, world).figures
    assert _value(bad, "style") <= 0.2
    for start in ("concept R@1", "concept R@5", "text to image R@1", "image to text R@1"):
        assert _value(bad, start) < _value(good, start) - 0.3, start


def test_noise_is_far_from_real_and_one_picture_for_all_isn_t_diverse(evaluator: Evaluator, world: World) -> None:
    requests = plan(evaluator.real, "train", 15)
    ideal = _ideal(requests, world)
    noise = [np.random.default_rng(i).integers(0, 256, image.shape, np.uint8) for i, image in enumerate(ideal)]
    good, bad = (evaluate(images, requests, evaluator, world).figures for images in (ideal, noise))
    for start in ("Frechet distance, ", "kernel distance"):
        assert _value(bad, start) > 1.2 * _value(good, start), start
    same = evaluate([ideal[0]] * len(requests), requests, evaluator, world).figures
    assert _value(same, "perceptual distance, two seeds of a prompt") == 0
    assert _value(bad, "perceptual distance, two seeds of a prompt") > 0
    assert _value(same, "text to image R@1") == 0, "pictures that are all alike find nothing"


def test_recall_tells_one_picture_for_all(evaluator: Evaluator, world: World) -> None:
    requests = plan(evaluator.real, "train", 15)
    ideal = _ideal(requests, world)
    good = {f.name: f for f in evaluate(ideal, requests, evaluator, world).figures}
    names = [name for name in good if name.startswith(("precision", "recall"))]
    assert len(names) == 2
    for name in names:
        assert good[name].value == good[name].real, "the real pictures themselves are at the floor"
    same = evaluate([ideal[0]] * len(requests), requests, evaluator, world).figures
    assert _value(same, "recall") < _value(list(good.values()), "recall") - 0.2


def test_a_model_that_copies_is_found_out(evaluator: Evaluator, world: World) -> None:
    requests = plan(evaluator.real, "train", 15)
    main = [r for r in requests if r.role == "main"]
    copied = evaluate(_ideal(requests, world), requests, evaluator, world)
    assert [n.item for n in copied.nearest] == [r.item for r in main]
    assert max(n.distance for n in copied.nearest) < 0.1, "a copy, up to the half precision that features are kept in"
    assert _value(copied.figures, "distance to the nearest training picture over") < 0.05
    # The held-out pictures are as far from training as they are.
    held_out = plan(evaluator.real, "test_pair", 100)
    figures = evaluate(_ideal(held_out, world), held_out, evaluator, world).figures
    assert _value(figures, "distance to the nearest training picture over") == pytest.approx(1, abs=0.05)


def test_held_out_split_is_measured_against_its_own_pictures(evaluator: Evaluator, world: World) -> None:
    requests = plan(evaluator.real, "test_pair", 100)
    figures = evaluate(_ideal(requests, world), requests, evaluator, world).figures
    for figure in figures:
        if figure.share and figure.real is not None:
            assert figure.value == figure.real, figure.name


def test_networks_are_kept_by_hash(
    evaluator: Evaluator, world: World, network: FeatureNetwork, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = prepare(world, "world", network, "random", HashedText(), cache=cache)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert again.hash == evaluator.hash
    for name, tensor in evaluator.readers.state_dict().items():
        assert torch.equal(again.readers.state_dict()[name], tensor), name
    # Other data: other features. A damaged file: made again, to the same bits.
    other = read_real(world[:30], "other", network, "random", cache)
    assert other.hash != evaluator.real.hash
    path = cache / f"evaluator-{evaluator.hash}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    prepare(world, "world", network, "random", HashedText(), cache=cache)
    assert path.read_bytes() == content


def test_own_data_without_styles_and_concepts(network: FeatureNetwork, painter: Painter, tmp_path: Path) -> None:
    samples = [
        Sample(f"{i}", painter(style, shape, place), (Caption(f"{style} thing, {shape}, {place}"),), {})
        for i, (style, shape, place) in enumerate(
            (style, shape, place)
            for style in ("bold", "pale")
            for shape in ("square", "disc", "ring", "cross")
            for place in ("left", "middle", "right")
        )
    ]
    evaluator = prepare(samples, "own", network, "random", HashedText(), cache=tmp_path)
    assert Counter(p.split for p in evaluator.real.pictures)["held_out"] == 2
    requests = plan(evaluator.real, "train", 10)
    names = [f.name for f in evaluate(_ideal(requests, samples), requests, evaluator, samples).figures]
    assert not any(name.startswith(("style", "concept")) for name in names)
    assert any(name.startswith("Frechet distance, 10 against 10") for name in names)
    assert any(name.startswith("text to image") for name in names)


def test_of_what_the_data_does_not_know_the_rest_is_measured(
    world: World, network: FeatureNetwork, tmp_path: Path
) -> None:
    """A third of the pictures has no style, another third no concept."""
    lacking = {0: "style", 1: "concept"}
    samples = [
        dataclasses.replace(one, meta={k: v for k, v in one.meta.items() if k != lacking.get(i % 3)})
        for i, one in enumerate(world)
    ]
    evaluator = prepare(samples, "some", network, "random", HashedText(), cache=tmp_path)
    seen = {p.concept for p in evaluator.real.pictures if p.split == "train"}
    assert [c for c, known in zip(evaluator.real.concepts, evaluator.readers.concept_seen, strict=True) if known] == [
        c for c in evaluator.real.concepts if c in seen
    ]
    requests = plan(evaluator.real, "train", 15)
    figures = evaluate(_ideal(requests, samples), requests, evaluator, samples).figures
    assert _value(figures, "style") >= 0.9
    assert _value(figures, "concept R@5") >= 0.8


@pytest.mark.parametrize("classes", [True, False])
def test_pictures_of_classes_and_without_captions_are_measured(
    network: FeatureNetwork, tmp_path: Path, painter: Painter, classes: bool
) -> None:
    """Few captions, each of many pictures, or the empty one of all."""
    drawn = [
        painter(style, shape, place)
        for style in ("bold", "pale", "striped")
        for shape in ("disc", "ring")
        for place in ("left", "middle", "right")
        for _ in range(2)
    ]
    samples = [
        Sample(f"{i}", picture, (Caption(("disc", "ring")[i // 6 % 2] if classes else ""),), {})
        for i, picture in enumerate(drawn)
    ]
    evaluator = prepare(samples, "own", network, "random", HashedText(), cache=tmp_path)
    splits = Counter(p.split for p in evaluator.real.pictures)
    assert splits == {"train": 32, "held_out": 4}
    requests = plan(evaluator.real, "train", 100)
    main = [r for r in requests if r.role == "main"]
    assert len(main) == 16
    assert len({r.item for r in main}) == 16
    if classes:
        assert {r.text for r in main[:2]} == {"disc", "ring"}, "every caption before one comes again"
    found = _by_name(evaluate([samples[r.item].image for r in requests], requests, evaluator, samples).figures)
    assert found["Frechet distance, 16 against 16 real"].real is not None
    assert [name for name in found if name.startswith("text to image R@1")] == ["text to image R@1 of 2"] * classes


def test_real_pictures_are_ranked_among_as_many_or_not_at_all(evaluator: Evaluator, world: World) -> None:
    """Among the few that are held out each would be found more easily."""
    held_out = len(evaluator.real.indices("test_pair"))
    for num in (held_out, 15):
        requests = plan(evaluator.real, "train", num)
        count = sum(r.role == "main" for r in requests)
        found = _by_name(evaluate(_ideal(requests, world), requests, evaluator, world).figures)
        assert (found[f"text to image R@1 of {count}"].real is None) == (count > held_out) == (num == 15)
        assert found["style read correctly"].real is not None


def test_too_few_pictures_is_said(world: World, network: FeatureNetwork, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 usable pictures"):
        read_real(world[:12], "few", network, "random", tmp_path)
    assert not list(tmp_path.iterdir())


def test_hash_of_data_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("{}")
    first = hash_data(tmp_path)
    (tmp_path / "0.tar.index.json").write_text("made by reading")
    assert hash_data(tmp_path) == first
    (tmp_path / "a.png").write_bytes(b"1")
    assert hash_data(tmp_path) != first
    with pytest.raises(DataError, match="no such data"):
        hash_data(tmp_path / "none")


def test_report() -> None:
    figures = [Figure("style", 0.5, 0.97, 1 / 9, share=True), Figure("distance", 12.345, None, None)]
    lines = report.table(figures).splitlines()
    assert lines[1].split() == ["style", "50.0", "%", "97.0", "%", "11.1", "%"]
    assert lines[2].split() == ["distance", "12.3", "-", "-"]
    read = json.loads(report.as_json(figures, {"model": "m"}))
    assert read["figures"]["distance"] == {"value": 12.345, "real": None, "chance": None}
    assert read["model"] == "m"
    assert "not FID" in read["protocol"]["distances"]


def test_every_picture_is_measured_whatever_the_batch(
    evaluator: Evaluator, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = plan(evaluator.real, "train", 15)
    ideal = _ideal(requests, world)
    whole = evaluate(ideal, requests, evaluator, world).figures
    monkeypatch.setattr("gigagan.evaluation.evaluate.BATCH", 4)
    for a, b in zip(whole, evaluate(ideal, requests, evaluator, world).figures, strict=True):
        assert a.name == b.name
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-4)
