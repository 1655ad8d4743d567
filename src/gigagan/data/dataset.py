"""A set of captioned pictures by index: (uint8 picture, captions); no randomness in it.

A set is a folder of tar shards, a folder with metadata.jsonl, parquet files, a folder for each class, or pictures
alone; `open_dataset` sees which.
"""

import bisect
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from gigagan.config import DataConfig, FilterConfig
from gigagan.data.captions import Caption
from gigagan.data.class_folders import ClassFolderSource
from gigagan.data.index import INDEX_SUFFIX, IndexedSource, filtered
from gigagan.data.places import entries, exists, is_far, place
from gigagan.data.shards import MANIFEST, read_manifest
from gigagan.data.sources import Fault, FolderSource, ParquetSource, Record, Source, split_named
from gigagan.data.tar_source import TarSource, index_shard
from gigagan.errors import DataError

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")
# 64 megapixels: above any camera in common use; a bomb of 1-bit pixels is refused before it is decoded.
MAX_PIXELS = 64 * 2**20
MAX_BAD_SHARDS = 0.01
SHARDS_LOOKED_AT = 32

__all__ = ["Caption", "CaptionedImages", "Sample", "open_dataset", "packaged_pictures"]


@dataclass(frozen=True)
class Sample:
    """A picture and what it shows."""

    key: str
    image: UInt8[np.ndarray, "H W C"]
    """RGB, or RGBA where the file has alpha."""
    captions: tuple[Caption, ...]
    meta: Mapping[str, Any]


class CaptionedImages:
    """Random access to the samples of one split, decoded and brought to one resolution."""

    def __init__(
        self, path: Path, source: Source, *, resolution: int | None, faults: list[Fault], enlarge: bool = True
    ) -> None:
        self.path = path
        self.source = source
        self.resolution = resolution
        self.enlarge = enlarge
        self.faults = faults
        """What was found unusable on opening: shards, and samples without a caption."""
        self.classes: tuple[str, ...] = source.classes if isinstance(source, ClassFolderSource) else ()
        """Names of the classes of a set with a folder for each."""
        self.captioned = not isinstance(source, ClassFolderSource) or bool(source.classes)
        """Whether there is anything to say of a picture; a plain folder has nothing."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """The sample. Raises DataError where it can't be used."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self.source.read(index)
            image = decode(record.image, self.resolution, enlarge=self.enlarge)
            return Sample(record.key, image, record.captions, record.meta)
        except DataError as error:
            raise DataError(f"{self.path}: {self.key(index)}: {error}") from None

    def key(self, index: int) -> str:
        """Name of a sample, without reading it."""
        return self.source.key(index)

    def fingerprint(self) -> str:
        """Of how many samples there are and the names of some: another set shows, a moved one doesn't."""
        count = len(self)
        names = [self.key(index) for index in range(0, count, max(count // 64, 1))]
        return hashlib.sha256("\0".join([str(count), *names]).encode()).hexdigest()[:16]


class Mixture:
    """The samples of several sets one after the other, and how often each set is shown."""

    def __init__(self, sets: Sequence[CaptionedImages], weights: Sequence[float]) -> None:
        self.sets = list(sets)
        self.weights = list(weights)
        self.first = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).tolist()
        """Number of the first sample of each set, and of all."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def key(self, index: int) -> str:
        number = bisect.bisect_right(self.first, index) - 1
        return f"{number}:{self.sets[number].key(index - self.first[number])}"

    def read(self, index: int) -> Record:
        number = bisect.bisect_right(self.first, index) - 1
        return replace(self.sets[number].source.read(index - self.first[number]), key=self.key(index))


def decode(content: bytes, resolution: int | None, *, enlarge: bool = True) -> UInt8[np.ndarray, "H W C"]:
    """Pixels of a PNG, JPEG or WebP file, cut to the middle square and brought to the resolution.

    Unless `enlarge`, a picture whose shorter side is no longer than the resolution stays as it is.

    Raises DataError where the file isn't whole, isn't one of these, or is too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{width} x {height} px is too large; at most {MAX_PIXELS // 2**20} megapixels are read"
                )
            image.load()
            picture = _rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError:  # its message holds an address
        raise DataError("isn't a whole PNG, JPEG or WebP picture (another format)") from None
    except Exception as error:  # whatever a decoder makes of a damaged file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"isn't a whole PNG, JPEG or WebP picture ({reason})") from None
    small = resolution is not None and min(picture.size) <= resolution and not enlarge
    if resolution is not None and picture.size != (resolution, resolution) and not small:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB or RGBA, the right way up."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def packaged_pictures() -> Path:
    """The few pictures that come with the package."""
    return Path(str(resources.files("gigagan") / "data" / "pictures"))


def open_dataset(
    path: Path | str,
    *,
    split: str = "",
    resolution: int | None = None,
    strict: bool = True,
    enlarge: bool = True,
    keep: FilterConfig = FilterConfig(),  # noqa: B008 (frozen)
) -> CaptionedImages:
    """The set at a path or URL, or one split of it; a set without splits is all train. Filters need an index of it.

    `enlarge` as in `decode`.

    Raises DataError where it is missing, empty or without that split, and, unless not strict, where more than 1 % of
    its shards are bad.
    """
    path = place(path)
    if not exists(path):
        raise DataError(f"{path}: no such file or folder; expected a data set (see docs/your-data.md)")
    source, shard_faults, sample_faults, shards, splits = _open(path, split)
    if keep != FilterConfig():
        source = filtered(source, keep, path)
    for fault in shard_faults:
        log.warning("%s: %s", path, fault)
    if strict and sample_faults:
        log.warning("%s: %d samples can't be used (first %s)", path, len(sample_faults), sample_faults[0])
    if strict and len(shard_faults) > MAX_BAD_SHARDS * shards:
        raise DataError(
            f"{path}: {len(shard_faults)} of {shards} shards are bad (first {shard_faults[0]}); at most 1 % may be; "
            "get them again or remove them"
        )
    if split and not splits and split != "train":
        raise DataError(
            f"{path}: has no splits, but {split!r} was asked for (data.split); use train, or give each sample one"
        )
    if split and splits and split not in splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(sorted(splits))}")
    if strict and not len(source):
        raise DataError(f"{path}: holds no picture with a caption; run `gigagan data check` on it")
    return CaptionedImages(path, source, resolution=resolution, faults=[*shard_faults, *sample_faults], enlarge=enlarge)


def open_for_training(cfg: DataConfig, *, resolution: int) -> CaptionedImages:
    """What a run is shown: one set, or a mixture of several. Raises DataError as `open_dataset`."""
    enlarge = not cfg.crop
    opened = partial(open_dataset, split=cfg.split, resolution=resolution, enlarge=enlarge, keep=cfg.keep)
    if not cfg.mix:
        return opened(cfg.path or packaged_pictures())
    sets = [opened(path) for path, _ in cfg.mix]
    if plain := [str(one.path) for one in sets if one.classes or not one.captioned]:
        raise DataError(f"{plain[0]}: has classes or no captions; sets with captions alone can be mixed")
    mixture = Mixture(sets, [weight for _, weight in cfg.mix])
    return CaptionedImages(
        Path("mixture"),
        mixture,
        resolution=resolution,
        faults=[f for one in sets for f in one.faults],
        enlarge=enlarge,
    )


def _open(path: Path, split: str) -> tuple[Source, list[Fault], list[Fault], int, set[str]]:
    """Source, bad shards, bad samples, number of shards, names of splits."""
    if path.suffix == INDEX_SUFFIX:
        indexed = IndexedSource(path, split=split, open_base=lambda base: _open(place(base), "")[0])
        return indexed, [], [], indexed.num_shards, indexed.splits
    is_file = path.suffix in (".tar", ".parquet") and (is_far(path) or path.is_file())
    files = [path] if is_file else entries(path)
    names = {file.name for file in files}
    if "metadata.jsonl" in names:
        folder = FolderSource(path, split=split)
        return folder, [], folder.faults, 0, folder.splits
    tars, parquets = ([file for file in files if file.suffix == kind] for kind in (".tar", ".parquet"))
    if tars or MANIFEST in names:
        return _open_shards(path, tars, split)
    if parquets:
        table = ParquetSource(parquets, split=split)
        return table, table.faults, [], len(parquets), table.splits
    if files and not is_file and len(classes := ClassFolderSource(path)):
        return classes, [], [], 0, set()
    raise DataError(
        f"{path}: holds no metadata.jsonl, *.tar, *.parquet or pictures; expected a data set (see docs/your-data.md)"
    )


def _open_shards(path: Path, tars: list[Path], split: str) -> tuple[Source, list[Fault], list[Fault], int, set[str]]:
    manifest = read_manifest(path)
    splits: set[str] = set()
    if manifest is not None:
        splits = {entry["split"] for entry in manifest["shards"]}
        tars = [path / entry["file"] for entry in manifest["shards"] if not split or entry["split"] == split]
    shards = [index_shard(tar) for tar in tars]
    bad = [Fault(shard.path.name, shard.broken) for shard in shards if shard.broken]
    samples = [fault for shard in shards for fault in shard.faults]
    source = TarSource(shards)
    if split and manifest is None:
        _check_unsplit(path, source, split)
    return source, bad, samples, len(shards), splits


def _check_unsplit(path: Path, source: TarSource, split: str) -> None:
    """Without a manifest all shards are of the split asked for. Raises DataError where first samples say otherwise."""
    first = sorted({int(row) for row in source.first if row < len(source)})
    for row in first[:: -(-len(first) // SHARDS_LOOKED_AT) or 1]:
        try:
            named = split_named(source.read(row).meta)
        except DataError:
            continue
        if named not in ("", split):
            raise DataError(
                f"{path}: its samples name splits ({named}), which an index tells apart; make one with `gigagan data "
                f"index {path} --out NAME.index` and give that"
            )
