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
    others: Tensor | None
    """[N, D], vectors of the distinct captions of the batch over all ranks, where a loss tells pictures from them."""
    features: TextFeatures
    z: Tensor
    """[B, z_dim], for this half step."""
    augmentation: Augmentation
    other: Tensor
    """[B], for each picture the index of a caption that isn't its own."""
    has_other: Tensor
    """[B] bool, False where every caption is the picture's own."""


def micro_batches(
    state: TrainState,
    batch: Batch,
    features: CaptionFeatures[TextFeatures],
    batch_gpu: int,
    *,
    phase: int,
    others: Tensor | None = None,
) -> Iterator[MicroBatch]:
    """This rank's share of the batch in parts. Randomness is a function of (seed, place in the order, phase), so that
    a restart or another number of ranks changes nothing; captions are mismatched within a part."""
    cfg, total = state.cfg, len(batch.captions)
    generator = torch.Generator().manual_seed(_mix(cfg.train.seed, state.place, phase))
    # Drawn for every rank, of which this one takes its share.
    first = dist.rank() * total
    z = torch.randn(total * dist.world_size(), cfg.generator.z_dim, generator=generator)[first : first + total]
    drawn = Augmentation.draw(cfg.augment, total * dist.world_size(), generator, state.device)
    augmentation = drawn.part(slice(first, first + total))
    for start in range(0, total, batch_gpu):
        part = slice(start, start + batch_gpu)
        captions = batch.captions[part]
        generator.manual_seed(_mix(cfg.train.seed, state.place, phase, first + start))
        other, has_other = mismatched(captions, generator)
        yield MicroBatch(
            img=batch.img[part].to(state.device, memory_format=torch.channels_last),
            captions=captions,
            others=others,
            features=features(captions).to(state.device),
            z=z[part].to(state.device),
            augmentation=augmentation.part(part),
            other=other.to(state.device),
            has_other=has_other.to(state.device),
        )


def other_captions(state: TrainState, captions: list[str]) -> Tensor | None:
    """Vectors of the distinct captions of the batch over all ranks, in order; None where no loss looks at them."""
    if state.contrast is None or not state.weights.clip:
        return None
    distinct = list(dict.fromkeys(captions))
    names = dist.gather(torch.tensor([_mix(caption) for caption in distinct], device=state.device)).tolist()
    vectors = dist.gather(state.contrast.text(distinct))
    return vectors[[names.index(name) for name in dict.fromkeys(names)]]


def _mix(*parts: object) -> int:
    """One seed of several numbers or texts."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
