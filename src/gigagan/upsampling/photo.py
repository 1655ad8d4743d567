"""Photographs as people have them: any mode, alpha, orientation, color profile; read for the network, written as PNG.

Channels: the network sees RGB. Gray comes back as gray and 16 bits as 16 bits; alpha is enlarged by bicubic
interpolation, which keeps opaque opaque, and the colors under it are those of its surroundings.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from gigagan import __version__
from gigagan.errors import ConfigError, DataError
from gigagan.metadata import XMP_KEYWORD, enhanced_xmp
from gigagan.upsampling.enlarger import Enlarger, Progress, Request
from gigagan.upsampling.formats import photo_formats
from gigagan.upsampling.png import write_png
from gigagan.upsampling.resize import fitted
from gigagan.upsampling.size import Size, size_of

MAX_PIXELS = 128 * 2**20
"""Of a picture that comes in: above any camera in common use, below what a bomb unfolds to."""
ALPHA_REACH = 8
"""Transparent places take their color from so many pixels around them."""
STRIP_ROWS = 16
"""Of the picture that comes in: the larger one is made ready for its file so many at a time."""
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photo:
    """A picture the right way up, in one of the modes L, LA, RGB, RGBA or I;16."""

    image: Image.Image
    icc: bytes
    exif: bytes
    """Without the orientation, which has been followed."""

    @property
    def width(self) -> int:
        """In pixels."""
        return self.image.width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.image.height

    @property
    def bits(self) -> int:
        """A channel."""
        return 16 if self.image.mode == "I;16" else 8

    @property
    def gray(self) -> bool:
        """Whether it has no colors."""
        return self.image.mode in ("L", "LA", "I;16")

    @property
    def alpha(self) -> bool:
        """Whether it has transparent places."""
        return self.image.mode in ("LA", "RGBA")

    @property
    def channels(self) -> int:
        """In the file that is written."""
        return (1 if self.gray else 3) + self.alpha

    def read(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "3 h w"]:
        """A rectangle as RGB in [-1, 1]; under alpha the colors of what is around."""
        if not self.alpha:
            pixels = self._values(top, bottom, left, right)
            return pixels.expand(3, -1, -1) * 2 - 1
        r = ALPHA_REACH
        outer = max(top - r, 0), min(bottom + r, self.height), max(left - r, 0), min(right + r, self.width)
        pixels = self._values(*outer)
        colors, alpha = pixels[:-1].expand(3, -1, -1), pixels[-1:]
        # The mean of the colors around, weighted by their alpha, where there is any; else white.
        window = 2 * r + 1
        around = [
            F.avg_pool2d(x[None], window, stride=1, padding=r, count_include_pad=True)[0]
            for x in (colors * alpha, alpha)
        ]
        near = torch.where(around[1] > 1e-6, around[0] / around[1].clamp(min=1e-6), torch.ones_like(colors))
        filled = torch.where(alpha > 0, colors, near)
        y, x = top - outer[0], left - outer[2]
        return filled[:, y : y + bottom - top, x : x + right - left] * 2 - 1

    def alpha_rows(self, top: int, bottom: int, factor: int) -> Float[Tensor, "h2 w2"]:
        """Alpha of some of the rows, `factor` times as large, in [0, 1]."""
        r = 3  # bicubic interpolation sees two pixels around
        above, below = min(top, r), min(self.height - bottom, r)
        alpha = self._values(top - above, bottom + below, 0, self.width)[-1:]
        large = F.interpolate(alpha[None], scale_factor=factor, mode="bicubic", align_corners=False)[0, 0]
        return large[above * factor : (above + bottom - top) * factor].clamp(0, 1)

    def _values(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "C h w"]:
        """All channels of a rectangle in [0, 1]."""
        cut = np.array(self.image.crop((left, top, right, bottom)))
        values = torch.from_numpy(cut.astype(np.float32)) / (65535 if self.bits == 16 else 255)
        return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def read_photo(path: Path) -> Photo:
    """The picture in a file. Raises DataError, one line, where it can't be used."""
    # Of a path Pillow maps some TIFFs into memory, and then forgets to turn them.
    with path.open("rb") as file:
        try:
            return photo_in(file, formats=photo_formats())
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def photo_sides(path: Path) -> tuple[int, int]:
    """Width and height as stored, from the file's first bytes: a turned picture's are the other way around.

    Raises DataError, one line, where it can't be used.
    """
    try:
        with path.open("rb") as file, _opened(file, photo_formats()) as image:
            return image.size
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def photo_in(file: BinaryIO, *, formats: tuple[str, ...]) -> Photo:
    """The picture in an open file; `formats`: Pillow's names of those that may be tried.

    Raises DataError, one line that doesn't name the file, where it can't be used.
    """
    with _opened(file, formats) as image:
        image.load()
        return _upright(image)


@contextmanager
def _opened(file: BinaryIO, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The picture before its pixels are read. Whatever goes wrong until it is closed becomes a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata; there are limits of our own
            with Image.open(file, formats=formats) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"{width} x {height} px is too large; at most {MAX_PIXELS // 2**20} megapixels are read"
                    )
                if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                    raise DataError(f"has {frames} frames; expected a still picture, so save one of them")
                yield image
    except DataError:
        raise
    except UnidentifiedImageError:  # its message holds an address
        raise DataError(
            f"isn't a picture in a format that is read here; save it as one of {', '.join(formats)}"
        ) from None
    except Exception as error:  # whatever a decoder makes of a damaged file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"isn't a whole picture ({reason}); get it again") from None


def as_photo(image: Image.Image) -> Photo:
    """A picture in memory. Raises DataError for a mode that isn't one of pictures."""
    image.load()
    return _upright(image)


def _upright(image: Image.Image) -> Photo:
    icc = image.info.get("icc_profile") or b""
    exif = image.getexif()
    turned = ImageOps.exif_transpose(image) if exif.get(ORIENTATION, 1) != 1 else image
    if ORIENTATION in exif:
        del exif[ORIENTATION]
    stored = exif.tobytes() if len(exif) else b""
    mode = turned.mode
    if mode == "CMYK":
        turned, icc = _cmyk_to_rgb(turned, icc), b""
    elif mode == "I" or mode.startswith("I;16"):
        values = np.asarray(turned)
        turned = Image.fromarray(values.clip(0, 65535).astype(np.uint16))
    elif mode == "F":
        raise DataError("holds floating-point values, whose white isn't known; save it with 8 or 16 bits")
    elif "transparency" in turned.info or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        gray = mode in ("1", "L", "LA", "La")
        turned = turned.convert("RGBA")
        turned = turned.convert("LA") if gray else turned
    elif mode not in ("L", "RGB"):  # these would only be copied, which of a large picture is half a gigabyte
        turned = turned.convert("L" if mode == "1" else "RGB")
    space = b"RGB " if turned.mode.startswith("RGB") else b"GRAY"
    return Photo(turned, icc if icc[16:20] == space else b"", stored)  # a profile of other colors says nothing of these


def _cmyk_to_rgb(image: Image.Image, icc: bytes) -> Image.Image:
    """By its profile where that can be read; the result is sRGB."""
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")
        assert turned is not None
        return turned
    return image.convert("RGB")


def upsample_photo(
    enlarger: Enlarger, photo: Photo, size: Size, request: Request, progress: Progress = lambda pixels: None
) -> Iterator[np.ndarray]:
    """Bands of whole rows of the larger picture, [h, W, C] of uint8, or of uint16 where the picture has 16 bits."""
    factor = size.scale
    most = 65535 if photo.bits == 16 else 255

    def bands() -> Iterator[np.ndarray]:
        row = 0
        for band in enlarger.bands(photo, factor, request, progress):
            # A band of a wide picture is large, and is taken in strips so that it isn't there several times.
            for strip in band.split(STRIP_ROWS * factor, dim=1):
                values = (strip + 1) / 2
                if photo.gray:
                    values = values.mean(dim=0, keepdim=True)
                if photo.alpha:
                    count = strip.shape[1] // factor
                    values = torch.cat([values, photo.alpha_rows(row, row + count, factor)[None]])
                    row += count
                yield values.permute(1, 2, 0).contiguous().numpy()
            del band, strip, values  # while the next band is drawn

    made = photo.width * factor, photo.height * factor
    for band in fitted(bands(), made, (size.width, size.height)):
        yield (band * most).round().clip(0, most).astype(np.uint16 if photo.bits == 16 else np.uint8)


def upsampled_picture(enlarger: Enlarger, photo: Photo, scale: int, longest: int, request: Request) -> Image.Image:
    """The larger picture in memory, with the profile and EXIF of the smaller one."""
    if scale and longest:
        raise ConfigError("scale and to both came; give one of them")
    times = 0 if longest else scale or enlarger.factor
    size = size_of(photo.width, photo.height, scale=times, longest=longest)
    pixels = np.concatenate(list(upsample_photo(enlarger, photo, size, request)))
    made = Image.fromarray(pixels[:, :, 0] if photo.channels == 1 else pixels)
    if photo.icc:
        made.info["icc_profile"] = photo.icc
    if photo.exif:
        made.info["exif"] = photo.exif
    return made


def write_photo(
    file: BinaryIO,
    enlarger: Enlarger,
    photo: Photo,
    size: Size,
    request: Request,
    said: dict[str, str],
    progress: Progress = lambda pixels: None,
) -> None:
    """The larger picture as PNG, row by row, with the profile and EXIF of the smaller one."""
    text = PngImagePlugin.PngInfo()
    mark = {XMP_KEYWORD: enhanced_xmp(said.get("prompt", ""))}
    for key, value in ({"Software": f"open-gigagan {__version__}"} | said | mark).items():
        text.add_itxt(key, value)
    write_png(
        file,
        upsample_photo(enlarger, photo, size, request, progress),
        size=(size.width, size.height),
        channels=photo.channels,
        bits=photo.bits,
        icc=photo.icc,
        exif=photo.exif,
        text=text,
    )
