"""What a half step is given: pictures, captions, text features and all the randomness it needs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gigagan import dist
from gigagan.augment import Augmentation
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.losses import mismatched
from gigagan.models.frozen import TextFeatures
from gigagan.training.state import TrainState


@dataclass(frozen=True)
class MicroBatch:
    """Pictures with their captions, and all the randomness a step needs."""

    img: Tensor
    """uint8 [B, 3, H, W]."""
    captions: list[str]
    whole: list[str]
    """Captions of the whole batch on this rank, to tell a picture from."""
    features: TextFeatures
    z: Tensor
    """[B, z_dim], for this half step."""
    augmentation: Augmentation
    other: Tensor
    """[B], for each picture the index of a caption that isn't its own."""
    has_other: Tensor
    """[B] bool, False where every caption is the picture's own."""


def micro_batches(
    state: TrainState, batch: Batch, features: CaptionFeatures[TextFeatures], batch_gpu: int, *, phase: int
) -> Iterator[MicroBatch]:
    """The batch in parts. Randomness is a function of (seed, rank, images seen, phase), so a restart changes nothing;
    latents and augmentation are drawn for the whole batch, captions are mismatched within a part."""
    cfg, total = state.cfg, len(batch.captions)
    generator = torch.Generator().manual_seed(_mix(cfg.train.seed, dist.rank(), state.nimg, phase))
    z = torch.randn(total, cfg.generator.z_dim, generator=generator)
    augmentation = Augmentation.draw(cfg.augment, total, generator, state.device)
    for start in range(0, total, batch_gpu):
        part = slice(start, start + batch_gpu)
        captions = batch.captions[part]
        other, has_other = mismatched(captions, generator)
        yield MicroBatch(
            img=batch.img[part].to(state.device, memory_format=torch.channels_last),
            captions=captions,
            whole=batch.captions,
            features=features(captions).to(state.device),
            z=z[part].to(state.device),
            augmentation=augmentation.part(part),
            other=other.to(state.device),
            has_other=has_other.to(state.device),
        )


def _mix(*numbers: int) -> int:
    """One seed of several numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
