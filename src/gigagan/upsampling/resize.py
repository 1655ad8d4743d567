"""Rows brought to another size as they come: Lanczos, with as many rows at hand as the filter sees."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

LOBES = 3  # of Pillow's Lanczos
BAND_ROWS = 256


def fitted(bands: Iterator[np.ndarray], size: tuple[int, int], to: tuple[int, int]) -> Iterator[np.ndarray]:
    """A picture of `size` (width, height) in bands of float32 [h, W, C] as one of the size `to`, which is no larger."""
    if size == to:
        yield from bands
        return
    (width, height), (new_width, new_height) = size, to
    ratio = height / new_height
    margin = int(np.ceil(LOBES * ratio)) + 1
    held: np.ndarray | None = None
    first, done = 0, 0  # the row of the picture that `held` begins with; rows given
    for band in bands:
        held = band if held is None else np.concatenate([held, band])
        last = first + len(held)
        while done < new_height:
            end = min(done + BAND_ROWS, new_height)
            if end * ratio + margin > last and last < height:
                break
            yield _resized(held, (done * ratio - first, end * ratio - first), (new_width, end - done), width)
            done = end
            keep = max(int(done * ratio) - margin - first, 0)
            held, first = held[keep:], first + keep


def _resized(held: np.ndarray, rows: tuple[float, float], size: tuple[int, int], width: int) -> np.ndarray:
    """Some rows, to a size. Pillow's filter sees beyond the box, so that bands meet as if they were one picture."""
    box = (0, rows[0], width, min(rows[1], len(held)))
    channels = [
        np.asarray(Image.fromarray(held[:, :, c]).resize(size, Image.Resampling.LANCZOS, box=box))
        for c in range(held.shape[2])
    ]
    return np.stack(channels, axis=2)
