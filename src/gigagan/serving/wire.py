"""What the server and its worker say to each other: a JSON header, then raw pixels. Nothing is unpickled.

The server sends {"items": [...]}; the worker answers {"answers": [...]} in the same order, and first of all its facts.
Or it sends {"upscale": {...}} and a picture's file, to which there is one answer; {"stop": true} ends that before its
time and has no answer of its own.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

LENGTHS = struct.Struct("<IQ")  # of the header and of the pixels, bytes


class Readable(Protocol):
    """A blocking stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """As many bytes, fewer at the end."""


@dataclass(frozen=True)
class Facts:
    """What the server must know of the model that its worker holds."""

    hash: str
    dtype: str
    device: str
    kind: str
    """What a prompt is to it: the text encoder's name; `none` takes no prompt."""
    resolutions: tuple[int, ...]
    """Sides of the pictures it makes, full resolution first."""
    num_layers: int
    """Style layers, of which a mix takes the first from one prompt."""
    batch: int
    """Pictures that are drawn at once."""
    psi: float
    """Truncation where a request has none."""
    factor: int = 0
    """Times the side that the model's upsampler makes in one pass; 0 = it has none."""


@dataclass(frozen=True)
class Item:
    """One picture to draw, or the frames of one loop."""

    prompt: str
    seed: int
    psi: float
    resolutions: tuple[int, ...]
    """Levels of the pyramid that are wanted; of a loop just one."""
    frames: int = 1
    fine_prompt: str = ""
    """Prompt of the layers from `layer` on; empty = no mix."""
    layer: int = 0

    @property
    def alone(self) -> bool:
        """Whether nothing else is drawn with it."""
        return False


@dataclass(frozen=True)
class Upscale:
    """A picture to make larger."""

    file: bytes = field(repr=False)
    """As it came: PNG, JPEG, WebP or TIFF."""
    prompt: str
    seed: int
    scale: int
    """Times the side; 0 where `longest` says it."""
    longest: int
    """Longer side of the result in pixels; 0 where `scale` says it."""
    alpha: bool
    """Whether the format of the answer can hold transparent places."""
    seconds: float
    """Drawing is given up after that."""

    @property
    def frames(self) -> int:
        """Its places in the queue."""
        return 1

    @property
    def alone(self) -> bool:
        """Whether nothing else is drawn with it."""
        return True


@dataclass(frozen=True)
class Raster:
    """A picture of any size and kind."""

    width: int
    height: int
    channels: int
    """1 to 4: gray, gray and alpha, RGB, RGBA."""
    bits: int
    """A channel: 8, or 16 of a gray one without alpha."""
    pixels: bytes = field(repr=False)
    """uint8 or uint16 [height, width, channels]."""
    icc: bytes = field(repr=False)
    exif: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What became of an item."""

    pictures: list[tuple[int, bytes]] = field(default_factory=list, repr=False)
    """Side and RGB bytes (uint8 [side, side, 3]) of each resolution in the item's order, or of each frame."""
    tokens: int = 0
    warning: str = ""
    refusal: str = ""
    """Why it can't be drawn: a mistake of the request."""
    failure: str = ""
    """Why it couldn't be drawn: a mistake of ours, or of the machine."""
    param: str = "prompt"
    """The field that a refusal is about."""
    late: bool = False
    """It was given up after its time."""
    raster: Raster | None = None
    """Of an upscale, the larger picture."""


def pack(header: dict[str, Any], pixels: bytes = b"") -> bytes:
    """A message as bytes."""
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(pixels)) + text + pixels


def read(stream: Readable) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the other side is gone."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    text, pixels = (stream.read(length) for length in LENGTHS.unpack(lengths))
    return json.loads(text), pixels


async def read_async(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The next message. Raises asyncio.IncompleteReadError or OSError where the other side is gone."""
    text, pixels = LENGTHS.unpack(await stream.readexactly(LENGTHS.size))
    header = json.loads(await stream.readexactly(text))
    return header, await stream.readexactly(pixels)


def pack_items(items: Sequence[Item | Upscale]) -> bytes:
    """A request of the server: items to draw together, or one to make larger."""
    if isinstance(items[0], Upscale):
        (item,) = items
        said = {key: value for key, value in vars(item).items() if key != "file"}
        return pack({"upscale": said}, items[0].file)
    return pack({"items": [asdict(item) for item in items]})


def unpack_items(header: dict[str, Any]) -> list[Item]:
    """The items of a request."""
    return [Item(**{**item, "resolutions": tuple(item["resolutions"])}) for item in header["items"]]


def unpack_upscale(header: dict[str, Any], file: bytes) -> Upscale:
    """The one picture of a request."""
    return Upscale(file=file, **header["upscale"])


RASTER_PARTS = ("pixels", "icc", "exif")


def pack_answers(answers: Sequence[Answer]) -> bytes:
    """A worker's answer."""
    said, parts = [], []
    for answer in answers:
        one = {key: value for key, value in vars(answer).items() if key not in ("pictures", "raster")}
        one["sides"] = [side for side, _ in answer.pictures]
        parts += [pixels for _, pixels in answer.pictures]
        if answer.raster is not None:
            held = [getattr(answer.raster, name) for name in RASTER_PARTS]
            facts = {key: value for key, value in vars(answer.raster).items() if key not in RASTER_PARTS}
            one["raster"] = facts | {"lengths": [len(part) for part in held]}
            parts += held
        said.append(one)
    return pack({"answers": said}, b"".join(parts))


def unpack_answers(header: dict[str, Any], pixels: bytes) -> list[Answer]:
    """The answers of a worker."""
    answers = []
    start = 0

    def next_part(length: int) -> bytes:
        nonlocal start
        start += length
        return pixels[start - length : start]

    for said in header["answers"]:
        pictures = [(side, next_part(3 * side**2)) for side in said.pop("sides")]
        if raster := said.pop("raster", None):
            parts = zip(RASTER_PARTS, map(next_part, raster.pop("lengths")), strict=True)
            said["raster"] = Raster(**raster | dict(parts))
        answers.append(Answer(pictures, **said))
    assert start == len(pixels), (start, len(pixels))
    return answers
