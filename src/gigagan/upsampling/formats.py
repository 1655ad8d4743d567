"""The formats of pictures that may come in, by Pillow's names; its other decoders are never shown anybody's bytes.

Some of those start programs (EPS: Ghostscript) or have no mark by which a file is known to be theirs.
"""

from PIL import Image

UPLOADS = ("PNG", "JPEG", "WEBP", "TIFF")
"""From strangers. Pillow's JPEG reads some cameras' MPO as well."""
PHOTOS = (*UPLOADS, "BMP", "GIF", "PPM", "AVIF")
"""From whoever runs the program."""


def photo_formats() -> tuple[str, ...]:
    """Those of PHOTOS that this Pillow has; AVIF isn't in all."""
    Image.init()
    return tuple(name for name in PHOTOS if name in Image.OPEN)
