"""What is in a data set and what can't be used: every picture is read."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gigagan.data.dataset import CaptionedImages, Sample, open_dataset
from gigagan.data.shards import read_manifest
from gigagan.data.sources import Fault, filled, split_named
from gigagan.errors import DataError


@dataclass
class Spread:
    """Least, median and most of some numbers."""

    least: int = 0
    median: int = 0
    most: int = 0

    @classmethod
    def of(cls, counts: Counter[int]) -> "Spread":
        """From how often each number came."""
        numbers = sorted(counts.elements())
        return cls(numbers[0], numbers[len(numbers) // 2], numbers[-1]) if numbers else cls()


@dataclass
class Report:
    """What `gigagan data check` says."""

    path: str
    samples: int = 0
    """Usable ones."""
    bad: list[dict[str, str]] = field(default_factory=list)
    """Name and reason of each file, sample or shard that can't be used."""
    splits: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Samples of each width x height, the most frequent twenty."""
    with_alpha: int = 0
    captions: int = 0
    distinct_captions: int = 0
    captions_a_sample: Spread = field(default_factory=Spread)
    caption_characters: Spread = field(default_factory=Spread)
    caption_tokens: Spread | None = None
    """None = not counted."""
    too_long: int = 0
    """Distinct captions of more tokens than the encoder takes."""
    styleless: int = 0
    """Captions that name no style, where others do."""
    with_background: int = 0
    """Captions that name a background."""

    def to_json(self) -> dict[str, Any]:
        """As printed by --json."""
        return asdict(self)


def check(
    path: Path | str, *, count_tokens: Callable[[str], int] | None = None, max_tokens: int = 0, progress: bool = True
) -> Report:
    """Read a whole set. Raises DataError where there is none."""
    dataset = open_dataset(path, strict=False)
    report = Report(str(path), bad=[asdict(fault) for fault in [*dataset.faults, *_changed(dataset.path)]])
    sizes, splits, characters, numbers = Counter[str](), Counter[str](), Counter[int](), Counter[int]()
    texts: set[str] = set()
    for result in tqdm(_read(dataset), total=len(dataset), desc="check", unit="img", disable=not progress):
        if isinstance(result, Fault):
            report.bad.append(asdict(result))
            continue
        report.samples += 1
        height, width, channels = result.image.shape
        sizes[f"{width} x {height}"] += 1
        splits[split_named(result.meta)] += 1
        report.with_alpha += channels == 4
        numbers[len(result.captions)] += 1
        report.styleless += sum(not caption.styled for caption in result.captions)
        report.with_background += sum(caption.background is not None for caption in result.captions)
        characters.update(len(caption.text) for caption in result.captions)
        texts.update(caption.text for caption in result.captions)
    report.sizes = dict(sizes.most_common(20))
    for name, count in zip(filled(list(splits)), splits.values(), strict=True):
        report.splits[name] = report.splits.get(name, 0) + count
    report.captions, report.distinct_captions = characters.total(), len(texts)
    report.captions_a_sample, report.caption_characters = Spread.of(numbers), Spread.of(characters)
    if count_tokens is not None:
        tokens = Counter(map(count_tokens, tqdm(sorted(texts), desc="tokens", unit="caption", disable=not progress)))
        report.caption_tokens = Spread.of(tokens)
        report.too_long = sum(count for length, count in tokens.items() if length > max_tokens)
    return report


def _changed(path: Path) -> list[Fault]:
    """Shards that aren't what the manifest says."""
    manifest = read_manifest(path)
    faults = []
    for entry in manifest["shards"] if manifest is not None else []:
        shard, expected = path / entry["file"], entry.get("sha256")
        if expected is not None and shard.is_file():
            with shard.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    faults.append(Fault(shard.name, "isn't the file that the manifest describes (sha256)"))
    return faults


def _read(dataset: CaptionedImages) -> Iterator[Sample | Fault]:
    """Every sample in order; two threads, since decoding releases the interpreter."""

    def one(index: int) -> Sample | Fault:
        try:
            return dataset[index]
        except DataError as error:
            name = dataset.key(index)
            return Fault(name, str(error).removeprefix(f"{dataset.path}: {name}: "))

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(dataset), 256):
            yield from pool.map(one, range(start, min(start + 256, len(dataset))))
