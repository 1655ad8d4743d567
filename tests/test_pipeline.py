"""The sampling path: a picture is a function of prompt, seed and psi, whatever it is drawn beside."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gigagan import pipeline
from gigagan.checkpoint import save_model
from gigagan.editing import interpolate, mix
from gigagan.errors import CheckpointError, ConfigError, PromptError
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator
from gigagan.models.latents import Latents, truncate
from gigagan.models.layers import to_uint8
from gigagan.models.upsampler import Upsampler
from gigagan.pipeline import Pipeline

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


def test_each_of_several_generators_draws_the_picture_that_it_draws_alone(pipe: Pipeline) -> None:
    def made() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4, 3, 5)]

    found = pipe(["x", "y"], generator=made(), num_images_per_prompt=2).seeds
    assert found == [pipe("x", generator=one).seeds[0] for one in made()]
    assert len(set(found)) == 3


@pytest.mark.parametrize("seeds", [-1, 2**63, True, 1.0, "1", [0, None]])
def test_a_bad_seed_is_one_line(pipe: Pipeline, seeds: object) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 0"):
        pipe("x", seeds=seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize("psi", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
def test_a_bad_psi_is_one_line(pipe: Pipeline, psi: object) -> None:
    with pytest.raises(ConfigError, match="psi is"):
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
    for generators in ([], [torch.Generator()], [torch.Generator()] * 3):
        with pytest.raises(ConfigError, match=f"{len(generators)} generators came for 2 pictures; give one"):
            pipe("x", generator=generators, num_images_per_prompt=2)
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


# The upsampler behind the generator.


@pytest.fixture(scope="module")
def two_stages(tiny_networks: Networks, upsampler: Upsampler) -> Pipeline:
    """The generator of 16 px with an upsampler to 64."""
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8), upsampler=upsampler)


def test_pictures_come_out_of_the_upsampler_over_those_of_the_generator(two_stages: Pipeline, pipe: Pipeline) -> None:
    out, small = two_stages(PROMPTS[:3], seeds=[1, 2, 3]), pipe(PROMPTS[:3], seeds=[1, 2, 3])
    assert out.resolutions == [64, 32, 16, 8, 4]
    assert out.images[0].size == (64, 64)
    for ours, base in zip(out.pyramid[2:], small.pyramid, strict=True):
        assert torch.equal(ours, base)
    again = to_uint8(torch.nn.functional.avg_pool2d(out.pyramid[0].float() / 127.5 - 1, 4))
    near = (again.int() - out.pyramid[2].int()).abs().float().mean()
    far = (again.int() - out.pyramid[2].roll(1, 0).int()).abs().float().mean()
    assert near < far  # each is the enlargement of its own


def test_an_upsampled_picture_does_not_depend_on_its_neighbors(two_stages: Pipeline) -> None:
    together, alone = two_stages(PROMPTS, seeds=[5, 6, 7, 8]), two_stages(PROMPTS[2], seeds=[7])
    assert torch.equal(together.pyramid[0][2], alone.pyramid[0][0])


def test_points_say_what_the_upsampler_draws(two_stages: Pipeline, pipe: Pipeline) -> None:
    a, b = (two_stages.latents([PROMPTS[n]], two_stages.z([5])) for n in (0, 2))
    whole = two_stages(PROMPTS[0], seeds=[5]).pyramid
    for ours, same, base in zip(whole[2:], pipe.draw(a.base), two_stages.draw(a)[2:], strict=True):
        assert torch.equal(ours, same)
        assert torch.equal(ours, base)
    assert torch.equal(two_stages.draw(a)[0], whole[0])
    # The upsampler follows the fine prompt, and the coarse one where nothing is left of the other.
    assert a.enlarged is not None
    assert b.enlarged is not None
    mixes = [mix(a, b, layer) for layer in range(a.num_layers + 1)]
    assert [m.enlarged is b.enlarged for m in mixes] == [True] * a.num_layers + [False]
    assert torch.equal(two_stages.draw(mixes[-1])[0], whole[0])
    followed = replace(a, enlarged=b.enlarged)
    assert torch.equal(two_stages.draw(followed)[2], whole[2])
    assert not torch.equal(two_stages.draw(followed)[0], whole[0])
    middle = interpolate(a, b, 0.5).enlarged
    assert middle is not None
    assert torch.equal(middle.ws, a.enlarged.ws * 0.5 + b.enlarged.ws * 0.5)
    joined = Latents.join([a, b])
    assert torch.equal(two_stages.draw(joined[1:])[0], two_stages.draw(b)[0])


def test_both_networks_are_kept_and_either_may_be_left_out(two_stages: Pipeline, tmp_path: Path) -> None:
    path = two_stages.save_pretrained(tmp_path / "model")
    whole, base = Pipeline.from_pretrained(path), Pipeline.from_pretrained(path, upsampled=False)
    assert torch.equal(pixels(whole, PROMPTS[0], [3]), pixels(two_stages, PROMPTS[0], [3]))
    assert base(PROMPTS[0], seeds=[3]).resolutions[0] == 16
    save_model(tmp_path / "up", None, HashedText(max_tokens=8), provenance={}, upsampler=two_stages.upsampler)
    with pytest.raises(ConfigError, match="holds an upsampler alone"):
        Pipeline.from_pretrained(tmp_path / "up")
    tampered = path / "upsampler" / "config.json"
    tampered.write_text(tampered.read_text().replace('"z_dim": 16', '"z_dim": 17'))
    with pytest.raises(CheckpointError, match="upsampler"):
        Pipeline.from_pretrained(path)


def test_upsample_takes_any_picture(two_stages: Pipeline, pipe: Pipeline) -> None:
    picture = Image.new("LA", (9, 5), (100, 40))
    assert two_stages.upsample(picture).size == (36, 20)
    assert two_stages.upsample(picture, scale=2, prompt="a cat", seed=3).mode == "LA"
    assert two_stages.upsample(picture, to=30).size == (30, 17)
    with pytest.raises(ConfigError, match="scale and to both"):
        two_stages.upsample(picture, scale=2, to=30)
    with pytest.raises(ConfigError, match="holds no upsampler"):
        pipe.upsample(picture)


def test_two_stages_that_do_not_fit_are_refused(two_stages: Pipeline, tiny_networks: Networks) -> None:
    assert two_stages.upsampler is not None
    cfg = two_stages.upsampler.cfg.model_copy(update={"input_resolution": 32, "blocks": (1,) * 5})
    with torch.device("meta"):
        other = Upsampler(cfg.model_copy(update={"num_filters": (1,) * 5}), feature_dim=HashedText.feature_dim)
    with pytest.raises(ConfigError, match="draws 16 px and the upsampler takes 32"):
        Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8), upsampler=other)
    with torch.device("meta"):
        cfg = two_stages.upsampler.cfg.model_copy(update={"z_dim": 9})
        other = Upsampler(cfg, feature_dim=HashedText.feature_dim)
    with pytest.raises(ConfigError, match="z_dim is 16 in the generator and 9 in the upsampler"):
        Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8), upsampler=other)
