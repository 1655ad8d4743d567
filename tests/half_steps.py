"""What a half step of training is given in tests: random pictures under captions of the test's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gigagan import losses
from gigagan.augment import Augmentation
from gigagan.config import RunConfig
from gigagan.models.frozen import HashedText
from gigagan.training.micro_batches import MicroBatch


def micro_batch(
    cfg: RunConfig,
    captions: Sequence[str],
    *,
    max_tokens: int = 16,
    others: Tensor | None = None,
    styles: Sequence[int] | None = None,
) -> MicroBatch:
    """The same for the same arguments; captions by `HashedText`."""
    generator = torch.Generator().manual_seed(0)
    other, has_other = losses.mismatched(captions, generator)
    B, side = len(captions), cfg.generator.resolution
    return MicroBatch(
        img=torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, generator=generator),
        captions=list(captions),
        others=others,
        features=HashedText(max_tokens=max_tokens).encode(captions),
        z=torch.randn(B, cfg.generator.z_dim, generator=generator),
        augmentation=Augmentation.draw(cfg.augment, B, generator, torch.device("cpu")),
        other=other,
        has_other=has_other,
        styles=None if styles is None else torch.tensor(styles),
    )
