"""POST /v1/images/upscale: its form, checked, as a picture to enlarge and a format to answer in."""

import io
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gigagan.errors import DataError
from gigagan.serving.api_error import invalid
from gigagan.serving.generation import (
    DEFAULT_COMPRESSION,
    Seed,
    check_format,
    check_model,
    check_prompt,
    told,
)
from gigagan.serving.limits import MAX_PROMPT_CHARS, MAX_SIDE, MAX_UPLOAD_PIXELS, UPSCALE_SHARE, Limits
from gigagan.serving.multipart import parts
from gigagan.serving.wire import Facts, Upscale
from gigagan.upsampling.formats import UPLOADS
from gigagan.upsampling.size import size_of

MAX_WEBP_SIDE = 16_383
SCALES = (2, 4, 8)
PICTURE = ("image", "image[]")
"""Names of the part that holds the picture: OpenAI's client sends one file by the first, a list by the second."""


class UpscaleRequest(BaseModel):
    """The fields beside the picture; a form sends numbers as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = None
    scale: int | None = None
    """Times the side; the model's own where neither is said."""
    to: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """Longer side of the result in pixels."""
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] = ""
    seed: Seed = 0
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


@dataclass(frozen=True)
class UpscaleOrder:
    """A request that can be served."""

    item: Upscale
    kind: Literal["png", "jpeg", "webp"]
    compression: int
    """Quality of JPEG and WebP, 0 to 100."""
    ignored: list[str]


def order(body: bytes, content_type: str, facts: Facts, name: str, limits: Limits) -> UpscaleOrder:
    """What to enlarge; of the picture only the head is read. Raises ApiError for what can't be done."""
    asked, file = _parse(parts(body, content_type))
    check_model(asked.model, name)
    if not facts.factor:
        raise invalid("model", "this server's model has no upsampler; start it with one that does", "unsupported_value")
    if asked.scale is not None and asked.to is not None:
        raise invalid("to", "scale and to both came; give one of them")
    if asked.scale not in (None, *SCALES):
        raise invalid("scale", f"scale can't be; use one of {', '.join(map(str, SCALES))}")
    check_prompt("prompt", asked.prompt, facts, limits)
    kind = asked.output_format or "png"
    check_format(asked.response_format, kind, asked.output_compression)
    scale, longest = asked.scale or (0 if asked.to else facts.factor), asked.to or 0
    _check_size(_head(file), scale, longest, MAX_WEBP_SIDE if kind == "webp" else MAX_SIDE, limits)
    return UpscaleOrder(
        item=Upscale(
            file,
            asked.prompt,
            asked.seed,
            scale,
            longest,
            alpha=kind != "jpeg",
            seconds=UPSCALE_SHARE * limits.upscale_sec,
        ),
        kind=kind,
        compression=DEFAULT_COMPRESSION if asked.output_compression is None else asked.output_compression,
        ignored=["user"] if asked.user is not None else [],
    )


def _parse(found: dict[str, bytes]) -> tuple[UpscaleRequest, bytes]:
    pictures = [found.pop(name) for name in PICTURE if name in found]
    if len(pictures) > 1:
        raise invalid("image", "image and image[] both came; send one picture")
    fields = {}
    for name, value in found.items():
        try:
            fields[name] = value.decode()
        except UnicodeDecodeError:
            raise invalid(name, f"{name} isn't valid UTF-8") from None
    try:
        asked = UpscaleRequest.model_validate(fields)
    except ValidationError as error:
        raise told(error) from None
    if not pictures or not pictures[0]:
        raise invalid("image", "image is missing; send a picture's file", "missing_required_parameter")
    return asked, pictures[0]


def _head(file: bytes) -> tuple[int, int]:
    """Width and height as the file says them; whether it is whole shows when the worker decodes it."""
    try:
        with Image.open(io.BytesIO(file), formats=UPLOADS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise invalid("image", "image isn't a picture that is read here; send PNG, JPEG, WebP or TIFF") from None
    except Image.DecompressionBombError:
        raise invalid("image", "image is far too large", "image_too_large") from None
    except Exception:  # whatever a format's reader makes of a damaged head
        raise invalid("image", "image isn't a whole picture; get it again") from None
    if width * height > MAX_UPLOAD_PIXELS:
        message = f"image has {width} x {height} px; at most {MAX_UPLOAD_PIXELS:,} pixels are read here"
        raise invalid("image", message, "image_too_large")
    return width, height


def _check_size(head: tuple[int, int], scale: int, longest: int, most_side: int, limits: Limits) -> None:
    try:
        size = size_of(*head, scale=scale, longest=longest)
    except DataError as error:
        raise invalid("to", f"the picture {error}") from None
    param = "to" if longest else "scale"
    becomes = f"the result would be {size.width} x {size.height} px"
    if max(size.width, size.height) > most_side:
        raise invalid(param, f"{becomes}; a side has at most {most_side}", "image_too_large")
    if size.width * size.height > limits.upscale_pixels:
        most = limits.upscale_pixels
        raise invalid(param, f"{becomes}; at most {most:,} pixels are made here", "image_too_large")


def schema() -> dict[str, Any]:
    """Of the form, for the server's own OpenAPI page."""
    found = UpscaleRequest.model_json_schema()
    found["properties"]["image"] = {"type": "string", "format": "binary"}
    found["required"] = ["image"]
    return found
