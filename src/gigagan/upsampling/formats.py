"""The formats of pictures that may come in, by Pillow's names; its other decoders are never shown anybody's bytes.

Some of those start programs (EPS: Ghostscript) or have no mark by which a file is known to be theirs. And what becomes
of 16 bits where a format or a screen has 8.
"""

import numpy as np
from PIL import Image

UPLOADS = ("PNG", "JPEG", "WEBP", "TIFF")
"""From strangers. Pillow's JPEG reads some cameras' MPO as well."""
PHOTOS = (*UPLOADS, "BMP", "GIF", "PPM", "AVIF")
"""From whoever runs the program."""


def photo_formats() -> tuple[str, ...]:
    """Those of PHOTOS that this Pillow has; AVIF isn't in all."""
    Image.init()
    return tuple(name for name in PHOTOS if name in Image.OPEN)


def eight_bits(image: Image.Image) -> Image.Image:
    """Mode I;16 as mode L, others as they are: Pillow's own conversion makes all above 255 white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode == "I;16" else image
