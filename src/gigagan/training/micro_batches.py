"""What a half step is given: pictures, captions, text features and all the randomness it needs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gigagan import dist
from gigagan.augment import Augmentation
from gigagan.config import RunConfig, UpsamplerConfig
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.data.sampling import STYLE_INDEX
from gigagan.errors import ConfigError
from gigagan.losses import mismatched
from gigagan.models.frozen import TextFeatures
from gigagan.training.degrade import Degradation
from gigagan.training.state import TrainState


@dataclass(frozen=True)
class Window:
    """A square of each picture of a batch."""

    side: int
    """In pixels of the largest level."""
    corners: Tensor
    """[B, 2], top and left; multiples of the scale of the smallest level."""

    @classmethod
    def draw(cls, side: int, shown_side: int, step: int, batch: int, generator: torch.Generator) -> "Window":
        """Random places whose corners are multiples of `step`."""
        places = (shown_side - side) // step + 1
        return cls(side, torch.randint(places, (batch, 2), generator=generator) * step)

    def part(self, part: slice) -> "Window":
        """That of some of the pictures."""
        return Window(self.side, self.corners[part])

    def __call__(self, pyramid: list[Tensor]) -> list[Tensor]:
        """The squares at every level."""
        return [self._level(img, 1 << i) for i, img in enumerate(pyramid)]

    def _level(self, img: Tensor, scale: int) -> Tensor:
        side = self.side // scale
        corners = [(top // scale, left // scale) for top, left in self.corners.tolist()]
        return torch.stack(
            [one[:, y : y + side, x : x + side] for one, (y, x) in zip(img, corners, strict=True)]
        ).contiguous(memory_format=torch.channels_last)


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
    given: tuple[Tensor, ...] = ()
    """What G is given beside text and latent: nothing, or an upsampler's small pictures, [B, 4, h, w]."""
    words: TextFeatures | None = None
    """What G's attention reads in place of the captions."""
    styles: Tensor | None = None
    """[B], which style G is told to draw each picture in, by caption or z; -1 where by neither; None = no styles."""
    true: list[tuple[str, ...]] | None = None
    """Captions of the training split that the CLIP loss doesn't tell each picture from; None = its own alone."""
    window: Window | None = None
    """Which square of each picture D is shown; None = all of it."""

    def shown(self, pyramid: list[Tensor]) -> list[Tensor]:
        """A pyramid as D is shown it."""
        pyramid = self.augmentation(pyramid)
        return pyramid if self.window is None else self.window(pyramid)


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
    styles = batch.styles
    if styles is not None and batch.styled is not None:
        if cfg.data.style_by_seed:
            z = telling(z, styles.masked_fill(batch.styled, -1))
        else:
            styles = styles.masked_fill(~batch.styled, -1)
    drawn = Augmentation.draw(cfg.augment, total * dist.world_size(), generator, state.device)
    augmentation = drawn.part(slice(first, first + total))
    degradation, window = None, None
    if isinstance(cfg.generator, UpsamplerConfig):
        side, count, mine = (
            cfg.shown_side // cfg.generator.factor,
            total * dist.world_size(),
            slice(first, first + total),
        )
        degradation = Degradation.draw(cfg.degrade, cfg.generator.noise_max, count, side, generator).part(mine)
        if cfg.judged_side < cfg.shown_side:
            drawn_windows = Window.draw(cfg.judged_side, cfg.shown_side, cfg.generator.factor, count, generator)
            window = drawn_windows.part(mine)
    for start in range(0, total, batch_gpu):
        part = slice(start, start + batch_gpu)
        captions = batch.captions[part]
        generator.manual_seed(_mix(cfg.train.seed, state.place, phase, first + start))
        # Unstated: among which captions another one is found; those of the micro-batch.
        other, has_other = mismatched(captions, generator)
        given = () if degradation is None else (degradation.part(part)(batch.img[part]).to(state.device),)
        yield MicroBatch(
            img=batch.img[part].to(state.device, memory_format=torch.channels_last),
            captions=captions,
            others=others,
            features=features(captions).to(state.device),
            z=z[part].to(state.device),
            augmentation=augmentation.part(part),
            other=other.to(state.device),
            has_other=has_other.to(state.device),
            given=given,
            words=None if batch.words is None else features(batch.words[part]).to(state.device),
            styles=None if styles is None else styles[part].to(state.device),
            true=None if batch.true is None else batch.true[part],
            window=None if window is None else window.part(part),
        )


def check_parts(cfg: RunConfig, world: int) -> None:
    """That each part of a rank's share is large enough for what is looked for within it. Raises ConfigError."""
    share, group = cfg.train.batch // world, cfg.discriminator.minibatch_std
    sizes = {min(cfg.train.batch_gpu, share), share % cfg.train.batch_gpu} - {0}
    parts = f"train.batch ({cfg.train.batch}) over {world} processes by train.batch_gpu ({cfg.train.batch_gpu}) makes"
    if (cfg.loss.match_weight_D or cfg.loss.match_weight_G) and 1 in sizes:
        raise ConfigError(f"{parts} parts of one picture; the matching loss needs another caption: use fewer processes")
    if group and (uneven := [size for size in sizes if size % group]):
        raise ConfigError(f"{parts} parts of {uneven[0]}; expected multiples of discriminator.minibatch_std ({group})")


def telling(z: Float[Tensor, "B Z"], styles: Int[Tensor, " B"]) -> Float[Tensor, "B Z"]:
    """z that tells the style by which of nine equal parts has the largest sum; as it is where that is -1.

    That part changes places with the style's, so that z is distributed as N(0, I) where the style's is the largest.
    Deviation: on a small set a paired term teaches G the mean of all that a caption may mean, and z nothing; so z
    tells G which one of them is meant, and seeds choose.
    """
    count = len(STYLE_INDEX)
    used = z.shape[1] // count * count  # parts rather than numbers: what many numbers tell is learned sooner
    parts = z[:, :used].unflatten(1, (count, -1))
    largest, rows = parts.sum(dim=2).argmax(dim=1), torch.arange(len(z))
    style = torch.where(styles >= 0, styles, largest)
    told = parts.clone()
    told[rows, largest] = parts[rows, style]
    told[rows, style] = parts[rows, largest]
    return torch.cat([told.flatten(1), z[:, used:]], dim=1)


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
