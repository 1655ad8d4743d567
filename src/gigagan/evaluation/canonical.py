"""FID, Inception score and CLIP score as papers report them, for those who have the weights and the data.

N pictures are drawn for captions of a split as its pictures have them, so that a caption of many pictures (a class)
comes as often as it does there; FID is against all pictures of the split.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from gigagan.data.sampling import WHITE, composite
from gigagan.errors import DataError
from gigagan.evaluation.clip_score import PREFIX, picture_vectors, text_vectors
from gigagan.evaluation.distances import frechet_distance
from gigagan.evaluation.evaluate import BATCH, Figure, Image, Request
from gigagan.evaluation.inception import MAX_SIDE, NUM_SPLITS, Inception, inception_score, reduced
from gigagan.evaluation.real import Captioned, describe, usable
from gigagan.models.frozen_clip_pair import ClipPair

PROTOCOL = {
    "FID, Inception score, CLIP score": (
        "pictures for the captions of --split as its pictures have them, in an order fixed before any was drawn; drawn "
        f"and real ones cut to the square and reduced to {MAX_SIDE} px by Pillow's Lanczos where they are larger"
    ),
    "FID": (
        "clean-fid's: Inception pool3 (2,048) of the file given, pictures at 299 px by Pillow's bicubic in float, "
        "Gaussians in float64; against all pictures of the split"
    ),
    "Inception score": f"the same file's classes, resized and without bias as in StyleGAN2-ADA, {NUM_SPLITS} parts",
    "CLIP score": f'mean cosine, unscaled, of pictures and captions after "{PREFIX.strip()}"; chance: other captions',
}


def plan(data: Captioned, num: int, *, seed: int = 0) -> list[Request]:
    """Captions of pictures in an order drawn by the seed, all over again where they run out; picture i has seed i."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    known = [describe(index, sample) for index, sample in usable(data, order[:num])]
    if not known:
        raise DataError("the split has no usable picture; run `gigagan data check` on the data")
    return [Request(known[i % len(known)].caption, i, known[i % len(known)].index) for i in range(num)]


def measure(
    images: Iterable[Image],
    requests: Sequence[Request],
    data: Captioned,
    inception: Inception | None,
    clip: ClipPair | None,
    *,
    progress: bool = False,
) -> list[Figure]:
    """Figures of pictures, [H, W, 3], in the order of the requests; `data` is the split, at the side compared at."""
    features: list[Tensor] = []
    classes: list[Tensor] = []
    vectors: list[tuple[Tensor, Tensor, Tensor]] = []
    drawn = zip(requests, images, strict=True)
    bar = tqdm(total=len(requests), desc="canonical", unit="picture", disable=None if progress else True)
    while batch := list(islice(drawn, BATCH)):
        pictures = [reduced(image) for _, image in batch]
        if inception is not None:
            features.append(inception.features(pictures))
            classes.append(inception.probabilities(pictures))
        if clip is not None:
            own = [composite(data[r.item].image, WHITE) for r, _ in batch]
            texts = text_vectors(clip, [r.text for r, _ in batch])
            vectors.append((picture_vectors(clip, pictures), picture_vectors(clip, own), texts))
        bar.update(len(batch))
    bar.close()
    figures = []
    if inception is not None:
        real = reference(data, inception, progress=progress)
        fid = frechet_distance(torch.cat(features), real)
        figures.append(Figure(f"FID, {len(requests)} against {len(real)} real", fid))
        figures.append(Figure(f"Inception score of {len(requests)}", inception_score(torch.cat(classes))))
    if vectors:
        picture, real, text = (torch.cat(parts) for parts in zip(*vectors, strict=True))
        pairs = ((picture, text), (real, text), (picture, text.roll(1, 0)))
        value, of_real, chance = (float((a * b).sum(dim=1).mean()) for a, b in pairs)
        figures.append(Figure(f"CLIP score of {len(requests)}", value, of_real, chance))
    return figures


def reference(data: Captioned, inception: Inception, *, progress: bool = False) -> Tensor:
    """Features [M, P] of all usable pictures of a set."""
    parts = []
    bar = tqdm(total=len(data), desc="reference", unit="picture", disable=None if progress else True)
    samples = usable(data, range(len(data)))
    while batch := [reduced(composite(sample.image, WHITE)) for _, sample in islice(samples, BATCH)]:
        parts.append(inception.features(batch))
        bar.update(len(batch))
    bar.close()
    return torch.cat(parts)
