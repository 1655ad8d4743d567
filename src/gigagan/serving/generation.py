"""POST /v1/images/generations: its JSON, checked, as items to draw and a format to answer in."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gigagan.request import MAX_SEED
from gigagan.serving.api_error import ApiError, invalid
from gigagan.serving.limits import MAX_PICTURES, MAX_PIXELS, MAX_PROMPT_CHARS, Limits
from gigagan.serving.wire import Facts, Item

IGNORED = ("quality", "style", "moderation", "complexity", "user", "background")
"""Fields of OpenAI's models that mean nothing to this one; `x-ignored-params` lists those that came."""
DEFAULT_FRAMES = 9
DEFAULT_FRAME_MS = 200
DEFAULT_COMPRESSION = 95
Kind = Literal["png", "jpeg", "webp", "gif"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Mix(BaseModel):
    """Another prompt for the finer layers: prompt mixing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    layer: Annotated[int, Field(ge=0)] | None = None
    """The first layer that reads it; half of them where it isn't said."""


class GenerationRequest(BaseModel):
    """What OpenAI's client sends, and after it what is ours (its `extra_body`)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    frame_count: Annotated[int, Field(ge=2, le=16)] | None = None
    frame_duration_ms: Annotated[int, Field(ge=1, le=655_350)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    svg: None = None
    """How OpenAI's models draw an SVG: a client may send the null that is its default, and no more."""

    seed: Seed | None = None
    """Of the first picture; the next ones have the next seeds."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MAX_PICTURES)] | None = None
    """One for each picture."""
    truncation_psi: Annotated[float, Field(ge=0, le=1)] | None = None
    mix: Mix | None = None


@dataclass(frozen=True)
class Order:
    """A request that can be served."""

    items: list[Item]
    kind: Kind
    compression: int
    """Quality of JPEG and WebP, 0 to 100."""
    frame_ms: int
    side: int
    stream: bool
    safety_identifier: str
    ignored: list[str]


def parse(body: bytes) -> GenerationRequest:
    """The request as it came. Raises ApiError, which names the field."""
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        raise told(error) from None


def told(error: ValidationError) -> ApiError:
    """What to say of the first mistake."""
    first = error.errors(include_url=False, include_context=False)[0]
    # No error's `input` is repeated: it may be anything, and a megabyte of it.
    param = ".".join(str(part) for part in first["loc"])[:100] or None
    known = {
        "json_invalid": "the body isn't valid JSON",
        "missing": f"{param} is missing",
        "extra_forbidden": f"unknown parameter {param}; leave it out",
    }
    known["none_required"] = known["extra_forbidden"]
    codes = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    codes["none_required"] = codes["extra_forbidden"]
    codes["json_invalid"] = "invalid_json"
    message = known.get(first["type"], f"{param or 'the body'}: {first['msg']}")
    return invalid(param, message, codes.get(first["type"], "invalid_value"))


def order(asked: GenerationRequest, facts: Facts, name: str, limits: Limits) -> Order:
    """What to draw. Raises ApiError for what this model or server can't do."""
    check_model(asked.model, name)
    kind = _kind(asked)
    side = _side(asked.size, facts)
    _check_prompts(asked, facts, limits)
    seeds = _seeds(asked)
    frames = (asked.frame_count or DEFAULT_FRAMES) if kind == "gif" else 1
    if len(seeds) * frames * side**2 > MAX_PIXELS:
        raise invalid("n", f"{len(seeds)} x {frames} pictures of {side} px are more than {MAX_PIXELS:,} pixels")
    if len(seeds) * frames > limits.queue:
        param = "frame_count" if frames > 1 else "n"
        raise invalid(param, f"{len(seeds)} x {frames} pictures are more than the queue takes ({limits.queue})")
    layer = 0
    if asked.mix is not None:
        layer = facts.num_layers // 2 if asked.mix.layer is None else asked.mix.layer
        if layer > facts.num_layers:
            raise invalid("mix.layer", f"layer {layer} can't be; expected 0 to {facts.num_layers}")
    smaller = [resolution for resolution in sorted(facts.resolutions) if resolution < side]
    partial = smaller[len(smaller) - min(asked.partial_images or 0, len(smaller)) :]
    psi = facts.psi if asked.truncation_psi is None else asked.truncation_psi
    fine = asked.mix.prompt if asked.mix is not None else ""
    return Order(
        items=[Item(asked.prompt, seed, psi, (*partial, side), frames, fine, layer) for seed in seeds],
        kind=kind,
        compression=DEFAULT_COMPRESSION if asked.output_compression is None else asked.output_compression,
        frame_ms=asked.frame_duration_ms or DEFAULT_FRAME_MS,
        side=side,
        stream=bool(asked.stream),
        safety_identifier=asked.safety_identifier or asked.user or "",
        ignored=[name for name in IGNORED if getattr(asked, name) is not None],
    )


def check_model(asked: str | None, name: str) -> None:
    """Raises ApiError for any model but the one that is here."""
    if asked is not None and asked != name:
        raise ApiError(404, "model_not_found", f"no model {asked[:80]!r} here; it is {name}", param="model")


def check_format(response_format: str | None, kind: str, compression: int | None) -> None:
    """Raises ApiError for what no answer here can be."""
    if response_format == "url":
        raise invalid("response_format", "this server keeps no files; use b64_json", "unsupported_value")
    if kind == "svg":
        raise invalid("output_format", "pictures here are pixels; use png, jpeg, webp or gif", "unsupported_value")
    if kind == "png" and compression not in (None, 100):
        raise invalid("output_compression", "png loses nothing; give 100, or use jpeg or webp")


def _kind(asked: GenerationRequest) -> Kind:
    """The format, once nothing contradicts it."""
    kind = asked.output_format or "png"
    check_format(asked.response_format, kind, asked.output_compression)
    assert kind != "svg"
    if asked.background == "transparent":
        raise invalid("background", "this model draws no transparency; use opaque", "unsupported_value")
    if kind != "gif":
        for param in ("frame_count", "frame_duration_ms"):
            if getattr(asked, param) is not None:
                raise invalid(param, f"{param} is only for output_format gif")
    elif asked.stream or asked.output_compression is not None or asked.mix is not None:
        param = "stream" if asked.stream else "mix" if asked.mix is not None else "output_compression"
        raise invalid(param, f"{param} doesn't go with output_format gif")
    if asked.partial_images and not asked.stream:
        raise invalid("partial_images", "partial_images need stream to be true")
    return kind


def _side(size: str | None, facts: Facts) -> int:
    sizes = {f"{side}x{side}": side for side in facts.resolutions}
    if size in (None, "auto"):
        return facts.resolutions[0]
    if size not in sizes:
        raise invalid("size", f"size {size[:40]!r} can't be; use auto or one of {', '.join(sizes)}", "invalid_size")
    return sizes[size]


def _check_prompts(asked: GenerationRequest, facts: Facts, limits: Limits) -> None:
    prompts = [("prompt", asked.prompt)]
    if asked.mix is not None:
        prompts.append(("mix.prompt", asked.mix.prompt))
    for param, prompt in prompts:
        check_prompt(param, prompt, facts, limits)
        if facts.kind != "none" and not prompt.strip():
            raise invalid(param, f"{param} is empty; write what to draw")


def check_prompt(param: str, prompt: str, facts: Facts, limits: Limits) -> None:
    """Raises ApiError for a prompt that can't be read; an empty one can."""
    if len(prompt) > limits.prompt_chars:
        raise invalid(
            param, f"{param} has {len(prompt)} characters; at most {limits.prompt_chars}", "string_above_max_length"
        )
    if facts.kind == "none" and prompt:
        raise invalid(param, "this model is unconditional; its prompt is empty")
    if "\0" in prompt:
        raise invalid(param, f"{param} holds a NUL character; leave it out")


def _seeds(asked: GenerationRequest) -> Sequence[int]:
    if asked.seeds is not None:
        if asked.seed is not None:
            raise invalid("seeds", "seed and seeds both came; give one of them")
        if asked.n not in (None, len(asked.seeds)):
            raise invalid("seeds", f"{len(asked.seeds)} seeds came for {asked.n} pictures; give one for each")
        return asked.seeds
    n = asked.n or 1
    if asked.seed is None:
        return [secrets.randbelow(2**32) for _ in range(n)]
    return [(asked.seed + number) % (MAX_SEED + 1) for number in range(n)]


def schema() -> dict[str, Any]:
    """Of the body, for the server's own OpenAPI page."""
    return GenerationRequest.model_json_schema()
