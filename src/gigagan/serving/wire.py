"""What the server and its worker say to each other: a JSON header, then raw pixels. Nothing is unpickled.

The server sends {"items": [...]}; the worker answers {"answers": [...]} in the same order, and first of all its facts.
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


def pack_items(items: Sequence[Item]) -> bytes:
    """A request of the server."""
    return pack({"items": [asdict(item) for item in items]})


def unpack_items(header: dict[str, Any]) -> list[Item]:
    """The items of a request."""
    return [Item(**{**item, "resolutions": tuple(item["resolutions"])}) for item in header["items"]]


def pack_answers(answers: Sequence[Answer]) -> bytes:
    """A worker's answer."""
    said = [
        {
            "sides": [side for side, _ in answer.pictures],
            "tokens": answer.tokens,
            "warning": answer.warning,
            "refusal": answer.refusal,
            "failure": answer.failure,
        }
        for answer in answers
    ]
    return pack({"answers": said}, b"".join(pixels for answer in answers for _, pixels in answer.pictures))


def unpack_answers(header: dict[str, Any], pixels: bytes) -> list[Answer]:
    """The answers of a worker."""
    answers = []
    start = 0
    for said in header["answers"]:
        pictures = []
        for side in said.pop("sides"):
            pictures.append((side, pixels[start : start + 3 * side**2]))
            start += 3 * side**2
        answers.append(Answer(pictures, **said))
    assert start == len(pixels), (start, len(pixels))
    return answers
