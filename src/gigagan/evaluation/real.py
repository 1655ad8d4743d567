"""The real pictures: what is known of each, and their features, computed once for a data set and kept on disk."""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from gigagan.data.dataset import Sample
from gigagan.data.sources import filled, split_named
from gigagan.data.tensor_files import save_tensors
from gigagan.errors import DataError
from gigagan.evaluation.distort import distort
from gigagan.evaluation.features import FEATURES_VERSION, FeatureNetwork, Features, as_batch

log = logging.getLogger(__name__)

BATCH = 32
MIN_PICTURES = 20
COPIES = 2
"""Damaged copies of each training picture that the readers also learn from."""
HELD_OUT_SHARE = 0.1
"""Of data without splits, so much is kept from the readers, to judge them on."""
CLASS_PICTURES = 10
"""Where a caption has so many pictures, captions are classes (or there are none)."""


@runtime_checkable
class Captioned(Protocol):
    """Samples by index, as `data.dataset.open_dataset` gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Picture:
    """What is known of a real picture."""

    index: int
    """Its place in the data set."""
    key: str
    caption: str
    """The canonical one: the first that names no background."""
    plain_caption: str
    """The first that names no style, empty where there is none."""
    concept: str
    """Empty where the data knows none."""
    style: str
    """Empty where the data knows none."""
    split: str


@dataclass(frozen=True)
class RealSet:
    """All usable pictures of a data set, in its order; an item is a place among them."""

    pictures: list[Picture]
    features: Features
    hash: str
    """Of the data and of what its features were made by."""

    @cached_property
    def styles(self) -> list[str]:
        """Sorted."""
        return sorted({p.style for p in self.pictures} - {""})

    @cached_property
    def concepts(self) -> list[str]:
        """Sorted."""
        return sorted({p.concept for p in self.pictures} - {""})

    @cached_property
    def concept_captions(self) -> list[str]:
        """A text for each concept, in the order of `concepts`."""
        texts: dict[str, str] = {}
        for p in self.pictures:
            texts.setdefault(p.concept, p.plain_caption or p.concept)
        return [texts[concept] for concept in self.concepts]

    @property
    def held_out_split(self) -> str:
        """The split the readers are judged on."""
        splits = {p.split for p in self.pictures}
        return min(splits - {"train"}, key=lambda name: (name != "test_pair", name), default="train")

    def indices(self, split: str) -> list[int]:
        """Pictures of a split. Raises DataError where there are none."""
        found = [i for i, p in enumerate(self.pictures) if p.split == split]
        if not found:
            splits = Counter(p.split for p in self.pictures)
            raise DataError(f"split {split!r} has no pictures; the data's splits are {', '.join(sorted(splits))}")
        return found


def hash_data(path: Path) -> str:
    """Hash of a data set: of its manifest where there is one, else of the names, sizes and times of its files.

    Raises DataError where there is nothing at the path.
    """
    manifest = path / "manifest.json"
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if not file.name.endswith(".index.json")]  # made by reading the data
    if not files:
        raise DataError(f"{path}: no such data; expected a folder of shards or with metadata.jsonl, or parquet")
    listing = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def read_real(
    data: Captioned, data_hash: str, network: FeatureNetwork, network_hash: str, cache: Path, *, progress: bool = False
) -> RealSet:
    """The data set's pictures with their features, from the cache where they are in it.

    Raises DataError for fewer pictures than can be measured by.
    """
    digest = hashlib.sha256(json.dumps([data_hash, network_hash, FEATURES_VERSION]).encode()).hexdigest()[:16]
    path = cache / f"features-{digest}.safetensors"
    cached = _load(path, digest)
    if cached is not None:
        return cached
    pictures: list[Picture] = []
    parts: list[Features] = []
    for start in tqdm(
        range(0, len(data), BATCH), desc="real pictures", unit="batch", disable=None if progress else True
    ):
        samples = dict(usable(data, range(start, min(start + BATCH, len(data)))))
        if samples:
            pictures += [describe(index, sample) for index, sample in samples.items()]
            parts.append(network(as_batch([sample.image for sample in samples.values()])))
    if len(pictures) < MIN_PICTURES:
        raise DataError(f"the data has {len(pictures)} usable pictures; measuring needs at least {MIN_PICTURES}")
    real = RealSet(_with_splits(pictures), Features.join(parts), digest)
    _save(path, real)
    return real


def damaged(
    data: Captioned, pictures: Sequence[Picture], network: FeatureNetwork, *, seed: int, progress: bool = False
) -> Features:
    """Features of COPIES damaged copies of pictures: one round of all after another."""
    draw = torch.Generator().manual_seed(seed)
    rounds: list[list[Features]] = [[] for _ in range(COPIES)]
    for start in tqdm(
        range(0, len(pictures), BATCH), desc="damaged copies", unit="batch", disable=None if progress else True
    ):
        images = as_batch([data[picture.index].image for picture in pictures[start : start + BATCH]])
        for parts in rounds:
            parts.append(network(distort(images, draw)))
    return Features.join([part for parts in rounds for part in parts])


def usable(data: Captioned, indices: Iterable[int]) -> Iterator[tuple[int, Sample]]:
    """The samples that can be read, with their places; the others are logged."""
    for index in indices:
        try:
            yield index, data[index]
        except DataError as error:
            log.warning("left out: %s", error)


def describe(index: int, sample: Sample) -> Picture:
    """What a sample says of its picture."""
    captions = sample.captions
    plain = [caption for caption in captions if caption.background is None]
    styled = [caption.text for caption in plain if caption.styled]
    bare = [caption.text for caption in plain if not caption.styled]
    meta = sample.meta
    return Picture(
        index=index,
        key=sample.key,
        caption=(styled or bare or [captions[0].text])[0],
        plain_caption=bare[0] if bare else "",
        concept=str(meta.get("concept") or ""),
        style=str(meta.get("style") or ""),
        split=split_named(meta),
    )


def _with_splits(pictures: list[Picture]) -> list[Picture]:
    """As given where the data has splits; else a tenth is held out by hash: of the captions or, where they are few, of
    the pictures.
    """
    splits = filled([p.split for p in pictures])
    if any(splits):
        return [dataclasses.replace(p, split=split) for p, split in zip(pictures, splits, strict=True)]
    few = CLASS_PICTURES * len({p.caption for p in pictures}) <= len(pictures)
    names = [p.key if few else p.caption for p in pictures]
    ranked = sorted(set(names), key=lambda text: hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    held_out = set(ranked[: max(1, round(HELD_OUT_SHARE * len(ranked)))])
    return [
        dataclasses.replace(p, split="held_out" if name in held_out and len(ranked) > 1 else "train")
        for p, name in zip(pictures, names, strict=True)
    ]


def _save(path: Path, real: RealSet) -> None:
    tensors = {field.name: getattr(real.features, field.name).half() for field in dataclasses.fields(Features)}
    listing = json.dumps([dataclasses.astuple(p) for p in real.pictures])
    save_tensors(path, tensors, {"hash": real.hash, "pictures": listing})


def _load(path: Path, digest: str) -> RealSet | None:
    """What was saved; None where there is nothing or what is there is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            features = Features(*(file.get_tensor(field.name).float() for field in dataclasses.fields(Features)))
        pictures = [Picture(*row) for row in json.loads(metadata["pictures"])]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return RealSet(pictures, features, digest) if len(pictures) == len(features) else None
