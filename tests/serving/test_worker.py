"""What the worker answers, in this process: the pipeline's own pictures, and one failure never spoils another."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigagan.models.frozen import HashedText
from gigagan.models.frozen_labels import ClassNames
from gigagan.models.generator import Generator
from gigagan.pipeline import Pipeline
from gigagan.serving import wire
from gigagan.serving.wire import Answer, Item, Raster, Upscale
from gigagan.serving.worker import answer, facts


@pytest.fixture(scope="module")
def pipe(tiny_networks: Callable[[int], tuple[Any, Any]]) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12))


def item(seed: int, **said: Any) -> Item:
    return Item("a red apple", seed, 0.7, said.pop("resolutions", (16,)), **said)


def pixels(picture: tuple[int, bytes]) -> np.ndarray:
    side, data = picture
    return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def test_pictures_are_the_pipelines_in_any_company(pipe: Pipeline) -> None:
    alone = [np.asarray(pipe("a red apple", seeds=[seed]).images[0]) for seed in range(7)]
    items = [item(seed) for seed in range(7)]
    items[2:2] = [item(9, frames=5), item(3, fine_prompt="a rocket", layer=1)]
    answers = answer(pipe, items)
    plain = [one for which, one in zip(items, answers, strict=True) if which.frames == 1 and not which.fine_prompt]
    for expected, one in zip(alone, plain, strict=True):
        assert np.array_equal(pixels(one.pictures[0]), expected)
        assert one.tokens == pipe.text_encoder.count_tokens("a red apple")


def test_levels_come_in_the_order_asked_for(pipe: Pipeline) -> None:
    (one,) = answer(pipe, [item(1, resolutions=(4, 16))])
    output = pipe("a red apple", seeds=[1])
    assert [side for side, _ in one.pictures] == [4, 16]
    assert np.array_equal(pixels(one.pictures[0]), np.asarray(output.level(4)[0]))


def test_a_loop_begins_at_its_seed_and_passes_the_next_two(pipe: Pipeline) -> None:
    (one,) = answer(pipe, [item(1, frames=9)])
    frames = [pixels(picture) for picture in one.pictures]
    assert len({frame.tobytes() for frame in frames}) == 9
    for seed, frame in ((1, 0), (2, 3), (3, 6)):
        assert np.array_equal(frames[frame], np.asarray(pipe("a red apple", seeds=[seed]).images[0]))


def test_mistakes_are_refusals_of_their_own_item(tiny_networks: Callable[[int], tuple[Any, Any]]) -> None:
    encoder = ClassNames(["cat", "dog"])
    G = Generator(tiny_networks(0)[0].cfg, feature_dim=encoder.feature_dim).eval().requires_grad_(False)
    pipe = Pipeline(G, encoder)
    assert facts(pipe).kind == "classes"
    cat, bird = (Item(name, 0, 0.7, (16,)) for name in ("cat", "bird"))
    mixed = [Item(one, 0, 0.7, (16,), fine_prompt=other) for one, other in (("cat", "bird"), ("bird", "cat"))]
    refused, drawn, *of_mixes = answer(pipe, [bird, cat, *mixed])
    for one in (refused, *of_mixes):
        assert "no class 'bird'" in one.refusal
        assert not one.failure
    assert [one.param for one in (refused, *of_mixes)] == ["prompt", "mix.prompt", "prompt"]
    assert np.array_equal(pixels(drawn.pictures[0]), np.asarray(pipe("cat", seeds=[0]).images[0]))


@contextmanager
def failing(pipe: Pipeline, seed: int, effect: Callable[[], None]) -> Iterator[None]:
    """The synthesis fails whenever the point of this seed is in the batch."""
    w = pipe.latents(["a red apple"], pipe.z([seed])).ws

    def look(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if (args[0] == w).all(dim=(1, 2)).any():
            effect()

    hook = pipe._drawing.synthesis.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def test_one_failure_leaves_the_others_alone(pipe: Pipeline) -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("none left")

    with failing(pipe, 2, out_of_memory):
        answers = answer(pipe, [item(seed) for seed in range(4)])
    assert [bool(one.failure) for one in answers] == [False, False, True, False]
    assert "none left" in answers[2].failure
    whole = answer(pipe, [item(seed) for seed in range(4)])
    assert [answers[n] for n in (0, 1, 3)] == [whole[n] for n in (0, 1, 3)]


def test_values_that_are_no_numbers_are_a_failure_and_no_black_picture(
    tiny_networks: Callable[[int], tuple[Any, Any]],
) -> None:
    G, _ = tiny_networks(0)
    G.mapping.w_avg.fill_(float("nan"))
    (one,) = answer(Pipeline(G, HashedText(max_tokens=12)), [item(0)])
    assert "FloatingPointError" in one.failure
    assert not one.pictures


def test_what_the_server_is_told_of_the_model(pipe: Pipeline) -> None:
    found = facts(pipe)
    assert found.resolutions == (16, 8, 4)
    assert (found.batch, found.psi, found.num_layers) == (pipe.micro_batch, 0.7, pipe.generator.num_ws)


ANSWERS = st.builds(
    Answer,
    st.lists(
        st.sampled_from([1, 2, 5]).flatmap(
            lambda n: st.tuples(st.just(n), st.binary(min_size=3 * n * n, max_size=3 * n * n))
        )
    ),
    st.integers(0, 99),
    st.text(),
    st.text(),
    st.text(),
    st.text(),
    st.booleans(),
    st.none() | st.builds(Raster, *[st.integers(1, 99)] * 4, st.binary(), st.binary(), st.binary()),
)


@given(st.lists(ANSWERS, max_size=4))
def test_answers_survive_the_wire(answers: list[Answer]) -> None:
    packed = wire.pack_answers(answers)
    message = wire.read(io.BytesIO(packed))
    assert message is not None
    assert wire.unpack_answers(*message) == answers
    assert wire.read(io.BytesIO(packed[:5])) is None


@given(st.builds(Upscale, st.binary(), st.text(), *[st.integers(0, 99)] * 3, st.booleans(), st.floats(0, 9)))
def test_a_picture_to_enlarge_survives_the_wire(item: Upscale) -> None:
    message = wire.read(io.BytesIO(wire.pack_items([item])))
    assert message is not None
    assert wire.unpack_upscale(*message) == item
