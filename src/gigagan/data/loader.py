"""Endless batches in a seeded order over ranks, resumable from an image count, with bad samples counted and named."""

import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from gigagan.config import DataConfig
from gigagan.data.dataset import CaptionedImages, Mixture
from gigagan.data.sampling import MAX_BAD_IN_A_ROW, Drawn, DrawnBatches
from gigagan.errors import ConfigError, DataError, MissingExtra
from gigagan.lifetime import die_with_parent

log = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.05
JUDGED_AFTER = 10_000
MAX_NAMED = 1000


@dataclass(frozen=True)
class Batch:
    """Pictures with one drawn caption each."""

    img: UInt8[Tensor, "B 3 H W"]
    captions: list[str]
    keys: list[str]
    words: list[str] | None = None
    """What G's attention reads in place of the captions."""
    styles: Int[Tensor, " B"] | None = None
    """Which of the emoji set's styles each picture has, -1 where none; None = none has one."""
    styled: Bool[Tensor, " B"] | None = None
    """Whether the captions name them."""
    true: list[tuple[str, ...]] | None = None
    """First captions in the set that are true of each as well, or that its caption may mean; None = unknown."""


@dataclass
class BadSamples:
    """What could not be used so far in this run."""

    seen: int = 0
    """Samples read, good or bad."""
    count: int = 0
    """Bad ones among them."""
    in_a_row: int = 0
    names: dict[str, None] = field(default_factory=dict)
    """Each bad sample with its reason, once, the first thousand."""

    def add(self, drawn: Drawn) -> None:
        """Count one place. Raises DataError where too much is bad."""
        for reason in drawn.bad:
            if reason not in self.names and len(self.names) < MAX_NAMED:
                self.names[reason] = None
                log.warning("skipped %s", reason)
        self.seen += len(drawn.bad) + bool(drawn.key)
        self.count += len(drawn.bad)
        self.in_a_row += len(drawn.bad)
        if self.in_a_row > MAX_BAD_IN_A_ROW:
            raise DataError(f"{self.in_a_row} samples in a row can't be used (last {drawn.bad[-1]}); {_CHECK}")
        self.in_a_row = 0 if drawn.key else self.in_a_row
        if self.seen > JUDGED_AFTER and self.count > MAX_BAD_SHARE * self.seen:
            raise DataError(
                f"{self.count:,} of {self.seen:,} samples can't be used (first {next(iter(self.names))}); {_CHECK}"
            )


_CHECK = "run `gigagan data check` on the set"


class Batches(Iterator[Batch]):
    """The batches, and what was skipped to get them."""

    def __init__(self, lists: Any, drawn: DrawnBatches) -> None:
        self._lists = [lists]
        self.bad = BadSamples()
        # Grain's threads and processes end with this object, or before the interpreter takes itself apart.
        self.close = weakref.finalize(self, _end, self._lists, drawn)

    def __next__(self) -> Batch:
        drawn: list[Drawn] = next(self._lists[0])
        for one in drawn:
            self.bad.add(one)
        img = torch.from_numpy(np.stack([one.image for one in drawn]))
        captions, words = [one.caption for one in drawn], [one.words for one in drawn]
        styles, styled = torch.tensor([one.style for one in drawn]), torch.tensor([one.styled for one in drawn])
        known = bool((styles >= 0).any())
        return Batch(
            img,
            captions,
            [one.key for one in drawn],
            None if words == captions else words,
            styles if known else None,
            styled if known else None,
            [one.true for one in drawn],
        )


def _order(grain: Any, dataset: CaptionedImages, seed: int) -> Any:
    """The endless order of samples: each epoch of a set is a new one; sets of a mixture take turns by weight."""

    def shuffled(first: int, last: int) -> Any:
        return grain.MapDataset.range(first, last).seed(seed).shuffle().repeat()

    if not isinstance(dataset.source, Mixture):
        return shuffled(0, len(dataset))
    mixture = dataset.source
    return grain.MapDataset.mix(list(map(shuffled, mixture.first[:-1], mixture.first[1:])), weights=mixture.weights)


def _worker_starts(number: int, count: int) -> None:
    die_with_parent()


def _end(lists: list[Any], drawn: DrawnBatches) -> None:
    drawn.closed = True
    for one in lists:
        one.close()
    lists.clear()


def batches(
    cfg: DataConfig,
    dataset: CaptionedImages,
    *,
    resolution: int,
    batch: int,
    seed: int,
    start_nimg: int,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """The part of each batch of `batch` images that one of `world` ranks sees, from `start_nimg` images on.

    Every epoch is a new order of the whole set. Raises ConfigError where the ranks don't divide the batch.
    """
    if batch % world:
        raise ConfigError(f"train.batch is {batch}, but there are {world} processes; use a multiple")
    if dataset.resolution != resolution:
        raise ConfigError(f"the data set was opened at {dataset.resolution} px, but {resolution} px are asked for")
    grain = _grain()
    # An item is a whole batch, so that workers, which take items in turn, don't change what is in one.
    drawn = DrawnBatches(
        cfg,
        dataset,
        _order(grain, dataset, seed),
        resolution=resolution,
        batch=batch,
        seed=seed,
        start_nimg=start_nimg,
        rank=rank,
        world=world,
    )
    # One thread reads ahead; decoding releases the interpreter, but more threads than that only contend.
    lists = grain.MapDataset.source(drawn).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if cfg.num_workers:
        options = grain.MultiprocessingOptions(num_workers=cfg.num_workers)
        lists = lists.mp_prefetch(options, worker_init_fn=_worker_starts)
    return Batches(iter(lists), drawn)


def _grain() -> Any:
    try:
        from absl import logging as absl

        level = absl.get_verbosity()
        absl.set_verbosity(absl.ERROR)  # grain warns that there is no jax
        import grain

        absl.set_verbosity(level)
    except ImportError:
        raise MissingExtra("grain", "train") from None
    return grain
