"""The sampling path: a picture is a function of prompt, seed and psi, whatever it is drawn beside."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gigagan import pipeline
from gigagan.errors import CheckpointError, ConfigError, PromptError
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator
from gigagan.models.layers import to_uint8
from gigagan.pipeline import Pipeline, truncate

Networks = Callable[[int], tuple[Generator, Discriminator]]
PROMPTS = ["a red apple", "a blue rocket in space, drawn", "x", "a house"]


@pytest.fixture(scope="module")
def pipe(tiny_networks: Networks) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8))


def pixels(pipe: Pipeline, prompts: str | list[str], seeds: list[int], psi: float = 0.6) -> Tensor:
    return pipe(prompts, seeds=seeds, truncation_psi=psi).pyramid[0]


# A picture alone.


@pytest.mark.parametrize(("micro_batch", "dtype"), [(1, torch.float32), (4, torch.float32), (4, torch.bfloat16)])
def test_a_picture_doesnt_depend_on_its_neighbors(
    tiny_networks: Networks, micro_batch: int, dtype: torch.dtype
) -> None:
    G = tiny_networks(0)[0]
    pipe = Pipeline(G, HashedText(max_tokens=8), dtype=dtype, micro_batch=micro_batch)
    alone = pixels(pipe, PROMPTS[0], [5])
    for count in (3, 8, 16):
        for position in range(count):
            prompts = [PROMPTS[(i + position) % len(PROMPTS)] for i in range(count)]
            seeds = [1000 * position + i for i in range(count)]
            prompts[position], seeds[position] = PROMPTS[0], 5
            fresh = Pipeline(G, HashedText(max_tokens=8), dtype=dtype, micro_batch=micro_batch)
            assert torch.equal(pixels(fresh, prompts, seeds)[position], alone[0]), (count, position)


def test_neighbors_differ(pipe: Pipeline) -> None:
    img = pixels(pipe, PROMPTS, [5, 5, 5, 6])
    assert len({one.numpy().tobytes() for one in img}) == 4
    assert not torch.equal(pixels(pipe, "x", [5]), pixels(pipe, "x", [6]))


def test_pictures_are_those_of_the_networks(pipe: Pipeline) -> None:
    """The paper's formulas, written out."""
    G = pipe.generator
    features = pipe.text_encoder.encode(["a red apple"])
    condition = G.text(features)
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    z16 = torch.randn(16, 16, generator=torch.Generator().manual_seed(pipeline.MEAN_SEED))
    w = G.mapping(z, condition.t_global)
    w_mean = torch.stack([G.mapping(one[None], condition.t_global)[0] for one in z16]).double().mean(dim=0).float()
    psi = 0.4
    inner = G.mapping.w_avg + psi * (w - G.mapping.w_avg)
    w = w_mean + psi * (inner - w_mean)
    expected = to_uint8(G.synthesize(w, condition)[0])
    drawn = pixels(pipe, "a red apple", [3], psi)
    assert (drawn.int() - expected.int()).abs().max() <= 1
    assert (drawn != expected).float().mean() < 0.01


def test_psi_1_is_no_truncation_and_psi_0_the_conditional_mean(pipe: Pipeline) -> None:
    w, w_mean, w_avg = torch.randn(3, 5, 7, dtype=torch.float64).unbind()
    assert truncate(w, w_mean, w_avg[0], 1.0) is w
    assert torch.equal(truncate(w, w_mean, w_avg[0], 0.0), w_mean)
    expected = w_mean + 0.3 * (w_avg[0] + 0.3 * (w - w_avg[0]) - w_mean)
    torch.testing.assert_close(truncate(w, w_mean, w_avg[0], 0.3), expected)

    img = pixels(pipe, ["a red apple", "a red apple", "x"], [1, 2, 1], psi=0)
    assert torch.equal(img[0], img[1])
    assert not torch.equal(img[0], img[2])
    untruncated = pipe.generator(pipeline.latent(9, 16), pipe.text_encoder.encode(["a red apple"]), dtype=torch.float32)
    assert torch.equal(pixels(pipe, "a red apple", [9], psi=1), to_uint8(untruncated[0]))


def test_text_is_encoded_once_a_prompt(tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(HashedText):
        asked: list[str] = []  # noqa: RUF012

        def encode(self, prompts):  # type: ignore[no-untyped-def]
            self.asked += prompts
            return super().encode(prompts)

    encoder = Counting()
    pipe = Pipeline(tiny_networks(0)[0], encoder)
    pipe(["a", "b", "a"], seeds=[0, 1, 2])
    pipe("a", seeds=range(3))
    assert encoder.asked == ["a", "b"]
    monkeypatch.setattr(pipeline, "CACHED_PROMPTS", 2)
    pipe(["a", "c", "a", "b"], seeds=[0, 0, 0, 0])
    assert encoder.asked == ["a", "b", "c", "b"]


# What is asked for.


def test_one_prompt_gives_a_picture_a_seed(pipe: Pipeline) -> None:
    output = pipe("x", seeds=(4, 2, 7))
    assert (output.prompts, output.seeds) == (["x"] * 3, [4, 2, 7])
    assert pipe("x", seeds=3).seeds == [3]
    assert pipe(["x"], seeds=range(2), num_images_per_prompt=2).seeds == [0, 1]
    assert pipe("x", seeds=np.array([2**63 - 1])).seeds == [2**63 - 1]


def test_many_prompts_take_a_seed_for_each_picture(pipe: Pipeline) -> None:
    assert pipe(["x", "y"], seeds=[1, 2]).prompts == ["x", "y"]
    output = pipe(["x", "y"], seeds=[1, 2, 3, 4], num_images_per_prompt=2)
    assert output.prompts == ["x", "x", "y", "y"]
    with pytest.raises(ConfigError, match="3 seeds came for 2 pictures"):
        pipe(["x", "y"], seeds=[1, 2, 3])


def test_seeds_are_drawn_and_told(pipe: Pipeline) -> None:
    output = pipe(["x", "y"], num_images_per_prompt=2)
    assert len(set(output.seeds)) == 4
    assert torch.equal(pixels(pipe, output.prompts, output.seeds, output.truncation_psi), output.pyramid[0])
    drawn = [pipe("x", generator=torch.Generator().manual_seed(1), num_images_per_prompt=2).seeds for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_the_global_generator_is_left_alone(pipe: Pipeline) -> None:
    before = torch.random.get_rng_state()
    pipe("x", num_images_per_prompt=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seeds", [-1, 2**63, True, 1.0, "1", [0, None]])
def test_a_bad_seed_is_one_line(pipe: Pipeline, seeds: object) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 0"):
        pipe("x", seeds=seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize("psi", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_bad_psi_is_one_line(pipe: Pipeline, psi: object) -> None:
    with pytest.raises(ConfigError, match="truncation_psi is"):
        pipe("x", truncation_psi=psi)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["x", ""], [3], "\ud800"])
def test_a_bad_prompt_is_one_line(pipe: Pipeline, prompt: object) -> None:
    with pytest.raises(PromptError) as error:
        pipe(prompt)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_other_bad_requests(pipe: Pipeline) -> None:
    with pytest.raises(ConfigError, match="output_type is 'jpg'"):
        pipe("x", output_type="jpg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seeds and generator both came"):
        pipe("x", seeds=[0], generator=torch.Generator())
    for count in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="num_images_per_prompt"):
            pipe("x", num_images_per_prompt=count)  # type: ignore[arg-type]


def test_a_long_prompt_is_cut_and_said_so(pipe: Pipeline) -> None:
    long = "one two three four five six seven eight nine"
    output = pipe([long, long, "short"], seeds=[0, 1, 2])
    assert output.warnings == [f"{long!r} has 11 tokens, the text encoder takes 8: the last 3 were dropped"]
    assert torch.equal(pixels(pipe, long, [0]), pixels(pipe, "one two three four five six", [0]))


# What comes out.


def test_output_types_hold_the_same_pixels(pipe: Pipeline) -> None:
    images = {kind: pipe("x", seeds=[0, 1], output_type=kind) for kind in ("pil", "np", "pt")}  # type: ignore[arg-type]
    img = images["pil"].pyramid[0]
    assert img.dtype == torch.uint8
    assert img.shape == (2, 3, 16, 16)
    as_pil = np.stack([np.asarray(image) for image in images["pil"].images])
    assert np.array_equal(as_pil, img.permute(0, 2, 3, 1).numpy())
    assert images["np"].images.dtype == np.float32
    assert np.array_equal(np.rint(images["np"].images * 255), as_pil)
    assert torch.equal((images["pt"].images * 255).round(), img.float())


def test_levels_are_reachable(pipe: Pipeline) -> None:
    output = pipe("x", seeds=[0, 1])
    assert output.resolutions == [16, 8, 4]
    assert [image.size for image in output.level(8)] == [(8, 8), (8, 8)]
    assert output.level(16)[1].tobytes() == output.images[1].tobytes()
    with pytest.raises(ConfigError, match="no level of 32 px; there are 16, 8, 4"):
        output.level(32)


# On disk.


def test_a_saved_pipeline_draws_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    path = pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(str(path))
    assert torch.equal(pixels(loaded, PROMPTS, [1, 2, 3, 4]), pixels(pipe, PROMPTS, [1, 2, 3, 4]))
    assert len(loaded.model_hash) == 12
    again = loaded.save_pretrained(tmp_path / "again")
    assert Pipeline.from_pretrained(again).model_hash == loaded.model_hash


def test_bfloat16_is_near_float32(pipe: Pipeline, tmp_path: Path) -> None:
    path = pipe.save_pretrained(tmp_path / "model")
    coarse = Pipeline.from_pretrained(path, dtype="bfloat16")
    assert not torch.equal(pixels(coarse, PROMPTS, [1, 2, 3, 4]), pixels(pipe, PROMPTS, [1, 2, 3, 4]))
    difference = pixels(coarse, PROMPTS, [1, 2, 3, 4]).float() - pixels(pipe, PROMPTS, [1, 2, 3, 4]).float()
    assert difference.abs().mean() < 3
    with pytest.raises(ConfigError, match="dtype float16"):
        Pipeline.from_pretrained(path, dtype=torch.float16)
    with pytest.raises(ConfigError, match="device 'quantum'"):
        Pipeline.from_pretrained(path, device="quantum")
    with pytest.raises(CheckpointError, match="no such model directory"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
