"""Projection: a picture that the generator can draw is found again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gigagan.editing import mix, project
from gigagan.losses import perceptual_distance
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.models.layers import to_float
from gigagan.pipeline import Pipeline

PROMPTS = ["a red apple", "a blue rocket in space", "x", "a house"]


@pytest.fixture(scope="module")
def pipe(tiny_networks: Callable[[int], tuple[Any, Any]]) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8))


def distance(network: EfficientNetLite, a: Tensor, b: Tensor) -> Tensor:
    """Perceptual, by a network that the projection doesn't look through."""
    with torch.no_grad():
        return perceptual_distance(network(to_float(a)).maps, network(to_float(b)).maps)


@pytest.mark.slow
def test_generated_pictures_are_found_again(pipe: Pipeline, random_lite0: EfficientNetLite) -> None:
    """Of 100, 90 within a quarter of the distance between two; by their prompts alone far fewer are."""
    prompts = [f"{PROMPTS[n % 4]} {n // 8}" for n in range(100)]
    img = pipe.draw(pipe.latents(prompts, pipe.z(range(100)), 1.0))[0]
    start = pipe.latents(prompts, pipe.z(range(100)), 0.0)
    two = distance(random_lite0, img, img.roll(1, 0)).mean()
    found = project(pipe.generator, start, img, steps=50)
    near = distance(random_lite0, pipe.draw(found)[0], img) <= 0.25 * two
    near_before = distance(random_lite0, pipe.draw(start)[0], img) <= 0.25 * two
    assert near.sum() >= 90
    assert near_before.sum() < near.sum() - 30


def test_the_distance_of_features_falls_too(pipe: Pipeline, random_lite0: EfficientNetLite) -> None:
    img = pipe.draw(pipe.latents(PROMPTS, pipe.z(range(4)), 1.0))[0]
    start = pipe.latents(PROMPTS, pipe.z(range(4)), 0.0)
    found = project(pipe.generator, start, img, random_lite0, steps=15)
    before, after = (distance(random_lite0, pipe.draw(point)[0], img) for point in (start, found))
    assert (after < before).all()


def test_what_is_found_can_be_edited_and_nothing_else_changes(pipe: Pipeline) -> None:
    before = {name: value.clone() for name, value in pipe.generator.state_dict().items()}
    img = pipe.draw(pipe.latents(PROMPTS, pipe.z(range(4)), 1.0))[0]
    start = pipe.latents(PROMPTS, pipe.z(range(4)), 0.0)
    kept = start.ws.clone()
    found = project(pipe.generator, start, img, steps=3)
    assert torch.equal(start.ws, kept)
    assert not torch.equal(found.ws, kept)
    assert torch.equal(found.t_local, start.t_local)
    assert not torch.equal(pipe.draw(mix(found, start, 1))[0], pipe.draw(found)[0])
    assert all(torch.equal(value, before[name]) for name, value in pipe.generator.state_dict().items())
    assert all(parameter.grad is None for parameter in pipe.generator.parameters())


def test_nothing_is_lost_on_the_way(pipe: Pipeline) -> None:
    """From the right styles Adam's first steps lead away; what comes out is no farther than the start."""
    point = pipe.latents(PROMPTS, pipe.z(range(4)), 1.0)
    img = pipe.draw(point)[0]
    for steps in (1, 20):
        found = project(pipe.generator, point, img, steps=steps)
        assert (pipe.draw(found)[0].float() - img.float()).abs().mean() < 0.6
