"""What a request may say, and what becomes of it, without a server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigagan.request import MAX_SEED
from gigagan.serving import generation
from gigagan.serving.api_error import ApiError
from gigagan.serving.generation import Order, order, parse
from gigagan.serving.limits import Limits
from gigagan.serving.wire import Facts

FACTS = Facts("abc", "float32", "cpu", "minilm", (64, 32, 16, 8), 6, 4, 0.7)


def ordered(facts: Facts = FACTS, limits: Limits = Limits(), **said: Any) -> Order:  # noqa: B008
    return order(parse(json.dumps({"prompt": "a cat", **said}).encode()), facts, "emoji", limits)


def refused(**said: Any) -> tuple[int, str, str | None]:
    with pytest.raises(ApiError) as caught:
        ordered(**said)
    return caught.value.status, caught.value.code, caught.value.param


def test_nulls_are_defaults() -> None:
    nulls = {name: None for name in generation.GenerationRequest.model_fields if name != "prompt"}
    plain, with_nulls = ordered(seed=1), ordered(**{**nulls, "seed": 1})
    assert plain == with_nulls
    (item,) = plain.items
    assert (item.psi, item.resolutions, item.frames, plain.kind) == (FACTS.psi, (64,), 1, "png")


def test_seeds() -> None:
    assert [item.seed for item in ordered(seed=7, n=3).items] == [7, 8, 9]
    assert [item.seed for item in ordered(seeds=[5, 1]).items] == [5, 1]
    drawn = [item.seed for item in ordered(n=10).items]
    assert len(set(drawn)) == 10
    assert max(drawn) < 2**32
    assert [item.seed for item in ordered(seed=MAX_SEED, n=2).items] == [MAX_SEED, 0]
    assert refused(seed=1, seeds=[1]) == (400, "invalid_value", "seeds")
    assert refused(n=3, seeds=[1]) == (400, "invalid_value", "seeds")


def test_partial_images_are_the_largest_levels_below() -> None:
    for count, sides in enumerate([(64,), (32, 64), (16, 32, 64), (8, 16, 32, 64)]):
        assert ordered(stream=True, partial_images=count).items[0].resolutions == sides
    assert ordered(stream=True, partial_images=3, size="16x16").items[0].resolutions == (8, 16)


BAD = [
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": "2"}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"size": "1024x1024"}, "size"),
    ({"size": ""}, "size"),
    ({"size": 64}, "size"),
    ({"response_format": "url"}, "response_format"),
    ({"output_format": "svg"}, "output_format"),
    ({"output_format": "bmp"}, "output_format"),
    ({"output_format": "png", "output_compression": 50}, "output_compression"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
    ({"background": "transparent"}, "background"),
    ({"frame_count": 4}, "frame_count"),
    ({"frame_duration_ms": 100}, "frame_duration_ms"),
    ({"output_format": "gif", "frame_count": 17}, "frame_count"),
    ({"output_format": "gif", "frame_count": 1}, "frame_count"),
    ({"output_format": "gif", "stream": True}, "stream"),
    ({"output_format": "gif", "output_compression": 100}, "output_compression"),
    ({"output_format": "gif", "mix": {"prompt": "a dog"}}, "mix"),
    ({"output_format": "gif", "frame_count": 16, "n": 5}, "frame_count"),
    ({"partial_images": 1}, "partial_images"),
    ({"partial_images": 4, "stream": True}, "partial_images"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seeds": []}, "seeds"),
    ({"seeds": list(range(11))}, "seeds"),
    ({"truncation_psi": 1.01}, "truncation_psi"),
    ({"truncation_psi": "0.5"}, "truncation_psi"),
    ({"mix": {"prompt": "x", "layer": 7}}, "mix.layer"),
    ({"mix": {"prompt": " "}}, "mix.prompt"),
    ({"mix": {"prompt": "x", "other": 1}}, "mix.other"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n"}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"sede": 1}, "sede"),
    ({"sede": None}, "sede"),
    ({"svg": {"model": "x"}}, "svg"),
    ({"user": "x" * 513}, "user"),
]


@pytest.mark.parametrize(("said", "param"), BAD, ids=lambda value: str(value)[:40])
def test_what_cant_be_is_refused_by_name(said: dict[str, Any], param: str) -> None:
    status, code, named = refused(**said)
    assert (status, named) == (400, param)
    assert code == dict.fromkeys(["sede", "svg", "mix.other"], "unknown_parameter").get(param, code)


def test_limits_hold_to_the_letter() -> None:
    assert ordered(prompt="x" * 4000)
    assert ordered(prompt="x" * 32_000, limits=Limits(prompt_chars=32_000))
    assert ordered(output_format="gif", frame_count=16, n=4)
    large = Facts("abc", "float32", "cpu", "minilm", (4096,), 6, 1, 0.7)
    assert ordered(large, n=2)
    with pytest.raises(ApiError, match="pixels") as caught:
        ordered(large, n=3)
    assert caught.value.param == "n"


def test_an_unknown_model_and_what_is_ignored() -> None:
    assert refused(model="dall-e-3") == (404, "model_not_found", "model")
    assert refused(model="../../etc/passwd") == (404, "model_not_found", "model")
    assert ordered(model="emoji", quality="hd", style="vivid", user="me").ignored == ["quality", "style", "user"]
    assert ordered(user="me").safety_identifier == "me"
    assert ordered(user="me", safety_identifier="you").safety_identifier == "you"


def test_an_unconditional_model_takes_no_prompt() -> None:
    nothing = Facts("abc", "float32", "cpu", "none", (64,), 6, 4, 0.7)
    assert ordered(nothing, prompt="").items[0].prompt == ""
    with pytest.raises(ApiError, match="unconditional"):
        ordered(nothing, prompt="a cat")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "seed": 1e400}',
        b'{"prompt": "a", "truncation_psi": NaN}',
        b'{"prompt": "a", "n": 1' + b"0" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a"} x',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_isnt_a_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert caught.value.status == 400
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [*generation.GenerationRequest.model_fields, "sede"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_anything_is_an_order_or_a_refusal(said: dict[str, Any]) -> None:
    told = None
    try:
        found = order(parse(json.dumps(said).encode()), FACTS, "emoji", Limits())
    except ApiError as error:
        told = error
    if told is None:
        assert 1 <= sum(item.frames for item in found.items) <= Limits().queue
    else:
        assert 400 <= told.status < 500
        json.loads(told.content)


def test_what_a_client_is_told_about_trying_again() -> None:
    busy = ApiError(429, "queue_full", "busy", retry_ms=1500)
    assert (busy.headers["retry-after-ms"], busy.headers["retry-after"], busy.headers["x-should-retry"]) == (
        "1500",
        "2",
        "true",
    )
    for status in (408, 409, 500, 504):
        assert ApiError(status, "x", "x").headers["x-should-retry"] == "false"
    assert "x-should-retry" not in ApiError(400, "x", "x").headers
