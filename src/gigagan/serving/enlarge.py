"""An uploaded picture, decoded and drawn larger: the worker's side of POST /v1/images/upscale."""

import io
import logging
import time
from collections.abc import Callable

import numpy as np

from gigagan.errors import DataError, GigaGANError
from gigagan.pipeline import Pipeline
from gigagan.serving.wire import Answer, Raster, Upscale
from gigagan.upsampling.enlarger import Enlarger, Request
from gigagan.upsampling.formats import UPLOADS
from gigagan.upsampling.photo import Photo, photo_in, upsample_photo
from gigagan.upsampling.size import size_of

log = logging.getLogger(__name__)


class _GivenUp(Exception):
    """Nobody waits for the picture any more."""


def enlarged(pipe: Pipeline, ask: Upscale, stopped: Callable[[], bool]) -> Answer:
    """The larger picture, or why there is none. `stopped` tells between tiles that nobody waits any more."""
    enlarger = pipe.enlarger
    assert enlarger is not None, "the server asks no model without an upsampler"
    end = time.monotonic() + ask.seconds

    def progress(pixels: int) -> None:
        if time.monotonic() > end:
            raise TimeoutError
        if stopped():
            raise _GivenUp

    try:
        request = Request(ask.prompt, ask.seed)
        enlarger.check(request)
        photo = photo_in(io.BytesIO(ask.file), formats=UPLOADS)
        if photo.alpha and not ask.alpha:
            refusal = "the picture has transparent places, which jpeg can't hold; use png or webp"
            return Answer(refusal=refusal, param="output_format")
        raster = _raster(enlarger, photo, ask, request, progress)
    except DataError as error:
        return Answer(refusal=f"the picture {error}", param="image")
    except GigaGANError as error:
        return Answer(refusal=str(error))
    except TimeoutError:
        return Answer(late=True)
    except _GivenUp:
        return Answer(failure="given up")
    except Exception as error:
        log.exception("a picture couldn't be enlarged")
        return Answer(failure=f"{type(error).__name__}: {error}")
    return Answer(tokens=pipe.text_encoder.count_tokens(ask.prompt), warning=pipe.cut(ask.prompt), raster=raster)


def _raster(
    enlarger: Enlarger, photo: Photo, ask: Upscale, request: Request, progress: Callable[[int], object]
) -> Raster:
    size = size_of(photo.width, photo.height, scale=ask.scale, longest=ask.longest)
    pixels = np.concatenate(list(upsample_photo(enlarger, photo, size, request, progress)))
    return Raster(size.width, size.height, photo.channels, photo.bits, pixels.tobytes(), photo.icc, photo.exif)
