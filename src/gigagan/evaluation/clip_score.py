"""CLIP score: cosine of a picture and its caption in CLIP's space (Hessel et al. 2021; paper 10), unscaled.

Axes: N pictures with a caption each, D the shared space.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gigagan.models.frozen_clip_pair import ClipPair
from gigagan.models.layers import to_float

PREFIX = "A photo depicts "
"""Of every caption (Hessel et al. 2021, Sec. 3)."""


@torch.no_grad()
def picture_vectors(clip: ClipPair, pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Float[Tensor, "N D"]:
    """Unit vectors of square pictures, brought to CLIP's side by Pillow's bicubic as CLIP's own preprocessing does."""
    size = (clip.side, clip.side)
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures]
    batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return clip.picture(clip(to_float(batch).to(clip.device))).cpu()


def text_vectors(clip: ClipPair, captions: Sequence[str]) -> Float[Tensor, "N D"]:
    """Unit vectors of captions, prefixed, cut at what CLIP takes."""
    return clip.text([PREFIX + caption for caption in captions]).cpu()
