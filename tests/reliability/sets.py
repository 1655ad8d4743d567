"""Sets of small pictures for the fault matrix, and its two sizes."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan.data.shards import write_shards


def sizes(ci: int, full: int) -> pytest.MarkDecorator:
    """How many, in CI and in `make matrix`."""
    full_size = pytest.param(full, id="full", marks=[pytest.mark.matrix, pytest.mark.timeout(7200)])
    return pytest.mark.parametrize("count", [pytest.param(ci, id="ci"), full_size])


def picture(draw: random.Random, side: int = 24, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.frombuffer(draw.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def folder_set(folder: Path, count: int, bad: set[int]) -> Path:
    folder.mkdir()
    draw = random.Random(0)
    samples = [(f"{k:05d}", b"bad" if k in bad else picture(draw, 64), {"text": f"number {k}"}) for k in range(count)]
    write_shards(samples, folder, split="", first=0)
    return folder
