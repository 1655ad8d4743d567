"""The way from captions to FID, Inception score and CLIP score, through tiny networks with the real interfaces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan.cli.canonical import open_judges
from gigagan.data.dataset import Sample
from gigagan.errors import CheckpointError, ConfigError, DataError
from gigagan.evaluation.canonical import measure, plan, reference
from gigagan.evaluation.clip_score import PREFIX, picture_vectors, text_vectors
from gigagan.evaluation.distances import frechet_distance
from gigagan.evaluation.evaluate import Figure
from gigagan.evaluation.inception import Inception, inception_score
from gigagan.models.frozen_clip_pair import ClipPair, load_clip_pair

pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
World = list[Sample]


@pytest.fixture(scope="module")
def clip(clip_checkpoint: Path) -> ClipPair:
    return load_clip_pair(str(clip_checkpoint))


def _by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {f.name.split(",")[0].split(" of ")[0]: f for f in figures}


def test_captions_come_as_often_as_pictures_have_them(world: World) -> None:
    requests = plan(world, len(world))
    assert [r.seed for r in requests] == list(range(len(world)))
    assert sorted(r.item for r in requests) == list(range(len(world)))
    assert all(r.text in {c.text for c in world[r.item].captions} and "background" not in r.text for r in requests)
    assert requests[:5] == plan(world, 5)
    # Two classes of 12 and 24 pictures, 72 drawn: each class as often as the data has it, each time with a new seed.
    two = [Sample(s.key, s.image, (world[i < 12].captions[2],), {}) for i, s in enumerate(world)]
    many = plan(two, 72)
    assert [r.text for r in many].count(two[0].captions[0].text) == 24
    assert len({r.seed for r in many}) == 72


def test_an_empty_split_is_said() -> None:
    with pytest.raises(DataError, match="no usable picture"):
        plan([], 10)


def test_figures_are_those_of_the_parts(world: World, tiny_inception: Path, clip: ClipPair) -> None:
    inception = Inception(tiny_inception)
    requests = plan(world, 40)
    images = [np.roll(world[r.item].image, 3, axis=1) for r in requests]
    found = _by_name(measure(iter(images), requests, world, inception, clip))
    real = inception.features([sample.image for sample in world])
    torch.testing.assert_close(reference(world, inception), real)
    assert found["FID"].value == pytest.approx(frechet_distance(inception.features(images), real), rel=1e-6)
    assert found["FID"].name == "FID, 40 against 36 real"
    score = inception_score(inception.probabilities(images))
    assert found["Inception score"].value == pytest.approx(score, rel=1e-5)
    texts = text_vectors(clip, [r.text for r in requests])
    own = torch.stack([a @ b for a, b in zip(picture_vectors(clip, images), texts, strict=True)]).mean()
    assert found["CLIP score"].value == pytest.approx(float(own), rel=1e-5)
    of_real = picture_vectors(clip, [world[r.item].image for r in requests])
    assert found["CLIP score"].real == pytest.approx(float((of_real * texts).sum(dim=1).mean()), rel=1e-5)
    assert found["CLIP score"].chance != found["CLIP score"].value


def test_fid_of_the_split_itself_is_0_and_noise_is_farther_than_a_shift(world: World, tiny_inception: Path) -> None:
    inception = Inception(tiny_inception)
    requests = plan(world, len(world))
    ideal = [world[r.item].image for r in requests]
    noise = [np.random.default_rng(i).integers(0, 256, image.shape, np.uint8) for i, image in enumerate(ideal)]
    shifted = [np.roll(image, 4, axis=1) for image in ideal]
    values = [
        _by_name(measure(images, requests, world, inception, None))["FID"].value for images in (ideal, shifted, noise)
    ]
    assert values[0] == pytest.approx(0, abs=1e-6 * values[1])
    assert values == sorted(values)
    assert [f.name for f in measure(ideal, requests, world, None, None)] == []


def test_clip_sees_what_its_own_preprocessing_makes(world: World, clip: ClipPair, clip_checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    image = np.asarray(Image.fromarray(world[3].image).resize((50, 50)))
    network = transformers.CLIPModel.from_pretrained(clip_checkpoint, local_files_only=True)
    resized = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    normal = (resized - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.from_numpy(normal).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(picture_vectors(clip, [image]), expected / expected.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text_vectors(clip, ["red"]), clip.text([f"{PREFIX}red"]))


def test_options_without_effect_or_file_are_said(tmp_path: Path, tiny_inception: Path, clip_checkpoint: Path) -> None:
    device = torch.device("cpu")
    assert open_judges(None, None, None, device) is None
    with pytest.raises(ConfigError, match="--fid-num 10: has no effect alone"):
        open_judges(None, None, 10, device)
    with pytest.raises(CheckpointError, match="no such file"):
        open_judges(tmp_path / "none.pt", None, None, device)
    judges = open_judges(tiny_inception, clip_checkpoint, None, device)
    assert judges is not None
    assert judges.about["fid_num"] == 30000
    assert {"inception_hash", "clip_hash"} < set(judges.about)
