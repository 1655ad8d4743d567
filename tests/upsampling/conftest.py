"""The small upsampler as people get it, and odd pictures, made by number."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from gigagan.checkpoint import save_model
from gigagan.models.frozen import HashedText
from gigagan.models.upsampler import Upsampler
from gigagan.upsampling.enlarger import Enlarger


@pytest.fixture
def enlarger(upsampler: Upsampler) -> Enlarger:
    return Enlarger(upsampler, HashedText(max_tokens=12))


@pytest.fixture(scope="session")
def model(upsampler: Upsampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upsampler") / "model"
    provenance = {"upsampler_trained_on": "drawings"}
    return save_model(path, None, HashedText(max_tokens=12), provenance=provenance, upsampler=upsampler)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr", "LAB", "HSV", "F", "RGBX")
SIDES = (1, 2, 3, 7, 8, 15, 31, 33, 64, 97)


@dataclass(frozen=True)
class Odd:
    """A file, and whether it is to be refused."""

    path: Path
    size: tuple[int, int]
    """The right way up."""
    refused: bool
    mode: str
    """Of the file that is to come out."""
    icc: bytes = b""


@pytest.fixture
def odd_picture() -> Callable[[Path, int], Any]:
    """Writes the picture of a number into a folder, and says what has to become of it."""
    return _odd_picture


def _odd_picture(folder: Path, number: int) -> Odd:
    rng = np.random.default_rng(number)
    mode = MODES[number % len(MODES)]
    size = int(rng.choice(SIDES)), int(rng.choice(SIDES))
    kind = ("plain", "plain", "plain", "oriented", "profile", "truncated", "animated", "text")[number // 15 % 8]
    gray = Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8))
    color = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8))
    image = picture_of(mode, gray, color)
    out = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGBA": "RGBA", "I;16": "I;16", "I": "I;16"}
    suffix = {"CMYK": "tif", "LAB": "tif", "I": "tif", "F": "tif", "PA": "tif", "YCbCr": "jpg"}.get(mode, "png")
    path = folder / f"{number:04d}.{suffix}"
    expected = Odd(path, size, mode == "F", out.get(mode, "RGB"))
    if kind == "oriented":
        exif = Image.Exif()
        exif[0x0112] = orientation = number % 8 + 1
        image.save(path, exif=exif)
        return Odd(path, size[::-1] if orientation > 4 else size, expected.refused, expected.mode)
    if kind == "profile" and mode in ("RGB", "RGBA"):
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image.save(path, icc_profile=icc)
        return Odd(path, size, False, expected.mode, icc)
    if kind == "truncated":
        buffer = io.BytesIO()
        large = color.convert("RGB").resize((64, 64))
        large.save(buffer, "JPEG")
        path = path.with_suffix(".jpg")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        return Odd(path, (64, 64), True, "RGB")
    if kind == "animated":
        path = path.with_suffix(".gif")
        frames = [Image.new("P", size, n) for n in range(3)]
        frames[0].putpalette(list(range(256)) * 3)
        color.convert("RGB").save(path, save_all=True, append_images=[gray.convert("RGB")])
        return Odd(path, size, True, "RGB")
    if kind == "text":
        path.write_bytes(b"no picture at all " * (number % 3))
        return Odd(path, size, True, "RGB")
    image.save(path)
    return expected


def picture_of(mode: str, gray: Image.Image, color: Image.Image) -> Image.Image:
    """Pixels in a mode."""
    if mode in ("I;16", "I", "F"):
        values = np.asarray(gray).astype(np.uint16) * 257
        return Image.fromarray(values if mode == "I;16" else values.astype(np.int32 if mode == "I" else np.float32))
    if mode == "PA":
        return color.convert("P").convert("PA")
    if mode == "LAB":
        rgb = color.convert("RGB")
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        turned = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
        assert turned is not None
        return turned
    if mode == "HSV":  # no format stores it
        return color.convert("RGB")
    if mode in ("1", "L"):
        return gray.convert(mode)
    if mode in ("RGBA", "LA"):
        return color.convert(mode)
    return color.convert("RGB").convert(mode if mode != "RGBX" else "RGB")
