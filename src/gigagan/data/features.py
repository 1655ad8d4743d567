"""Frozen text features of captions, each computed once: in memory, or before training in a file that is mapped.

A caption is kept as its real tokens only, in float16 (8 times smaller than padded float32 at 32 tokens), and always
read back from float16, so that a batch doesn't depend on what happened to be kept.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from gigagan.data.tensor_files import save_tensors
from gigagan.errors import DataError

PADDED_TO = 8
"""Batches are padded to a multiple of so many tokens."""
FORMAT = "gigagan-caption-features-1"
PROBE = "a probe of the text encoder, 1 2 3"


class Features(Protocol):
    """Padded features of some captions (models' TextFeatures)."""

    @property
    def tokens(self) -> Float[Tensor, "B T E"]: ...
    @property
    def mask(self) -> Bool[Tensor, "B T"]: ...
    @property
    def global_index(self) -> Int[Tensor, " B"]: ...


F = TypeVar("F", bound=Features, covariant=True)


class Encoder(Protocol[F]):
    """What is needed of a text encoder (models' Encoder[Features])."""

    name: str
    feature_dim: int
    max_tokens: int

    def encode(self, prompts: Sequence[str]) -> F: ...


class CaptionFeatures(Generic[F]):
    """Captions to the encoder's features. The newest distinct captions are kept, so each is encoded once."""

    def __init__(self, encoder: Encoder[F], *, max_cached: int = 100_000, preload: Path | None = None) -> None:
        self.encoder = encoder
        self._like: Any = None
        self.max_cached = max_cached
        self.preloaded = FeatureFile(preload, encoder) if preload is not None else None
        self._kept: OrderedDict[str, tuple[Float[Tensor, "t E"], int]] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> F:
        """Features of captions, float32, on the CPU."""
        found: dict[str, tuple[Tensor, int]] = {}
        for caption in dict.fromkeys(captions):
            if caption in self._kept:
                self._kept.move_to_end(caption)
                found[caption] = self._kept[caption]
            elif self.preloaded is not None and (stored := self.preloaded.get(caption)) is not None:
                found[caption] = stored
        missing = [caption for caption in dict.fromkeys(captions) if caption not in found]
        if missing:
            self._like = self.encoder.encode(missing)
            fresh = dict(zip(missing, _ragged(self._like), strict=True))
            found |= fresh
            self._kept |= fresh
            while len(self._kept) > self.max_cached:
                self._kept.popitem(last=False)
        if self._like is None:  # all captions came out of a file
            self._like = self.encoder.encode(captions[:1])
        return self._padded([found[caption] for caption in captions])

    def _padded(self, kept: Sequence[tuple[Float[Tensor, "t E"], int]]) -> F:
        # Padding beyond the longest caption changes nothing, being masked; a few lengths only, for compiled steps.
        longest = max(len(values) for values, _ in kept)
        length = min(-(-longest // PADDED_TO) * PADDED_TO, self.encoder.max_tokens)
        tokens = torch.zeros(len(kept), length, self.encoder.feature_dim)
        mask = torch.zeros(len(kept), length, dtype=torch.bool)
        for i, (values, _) in enumerate(kept):
            tokens[i, : len(values)] = values
            mask[i, : len(values)] = True
        positions = torch.tensor([position for _, position in kept])
        features: F = replace(self._like, tokens=tokens, mask=mask, global_index=positions)
        return features


class FeatureFile:
    """Features of captions that `gigagan data encode` wrote; only what is asked for is read."""

    def __init__(self, path: Path, encoder: Encoder[Features]) -> None:
        """Raises DataError where the file is damaged or another encoder's."""
        try:
            opened: Any = safe_open(path, framework="pt")
            self._file = opened
            held = (self._file.metadata() or {}).get(FORMAT)
            if held is None:
                raise DataError(f"{path}: isn't a file of caption features; write it with `gigagan data encode`")
            texts = bytes(self._file.get_tensor("captions").numpy()).decode()
            self._offsets = self._file.get_tensor("offsets").tolist()
            self._global_index = self._file.get_tensor("global_index").tolist()
            self._values = self._file.get_slice("values")
            self._places = {text: i for i, text in enumerate(json.loads(texts))}
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; write it with `gigagan data encode`") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{path}: isn't a whole file of caption features ({error}); write it again") from None
        if held != (name := _name(encoder)) or not self._same_probe(encoder):
            raise DataError(
                f"{path}: holds features of the encoder {held} with other weights or length than this "
                f"run's {name}; write it again with `gigagan data encode`"
            )
        if len(self._offsets) != len(self._places) + 1 or len(self._global_index) != len(self._places):
            raise DataError(f"{path}: its captions and offsets don't fit each other; write it again")

    def __len__(self) -> int:
        return len(self._places)

    def get(self, caption: str) -> tuple[Float[Tensor, "t E"], int] | None:
        """Tokens and global index of a caption, None where it isn't in the file."""
        place = self._places.get(caption)
        if place is None:
            return None
        return self._values[self._offsets[place] : self._offsets[place + 1]], self._global_index[place]

    def _same_probe(self, encoder: Encoder[Features]) -> bool:
        """Whether the encoder says of a probe what the file's did, up to another machine's rounding."""
        stored, (now, _) = self._file.get_tensor("probe"), _ragged(encoder.encode([PROBE]))[0]
        return stored.shape == now.shape and torch.allclose(stored.float(), now.float(), rtol=0.01, atol=0.01)


def write_features(
    encoder: Encoder[Features], captions: Iterable[str], path: Path, *, batch: int = 256, progress: bool = True
) -> int:
    """Encode each distinct caption and write a FeatureFile; how many there were. Raises DataError if it can't."""
    texts = sorted(set(captions))
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    encoded: dict[int, tuple[Tensor, int]] = {}
    with tqdm(total=len(texts), desc="captions", unit="caption", disable=not progress) as bar:
        for start in range(0, len(texts), batch):
            chunk = by_length[start : start + batch]
            encoded |= zip(chunk, _encode_fast(encoder, [texts[i] for i in chunk]), strict=True)
            bar.update(len(chunk))
    lengths = torch.tensor([0] + [len(encoded[i][0]) for i in range(len(texts))])
    tensors = {
        "values": torch.cat([encoded[i][0] for i in range(len(texts))]),
        "offsets": lengths.cumsum(0),
        "global_index": torch.tensor([encoded[i][1] for i in range(len(texts))]),
        "captions": torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8),
        "probe": _ragged(encoder.encode([PROBE]))[0][0],
    }
    try:
        save_tensors(path, tensors, {FORMAT: _name(encoder)})
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error}); give another --out") from None
    return len(texts)


def _encode_fast(encoder: Encoder[Features], prompts: list[str]) -> list[tuple[Float[Tensor, "t E"], int]]:
    """Features in batches of one length where the encoder can; equal to encode but for rounding."""
    ragged = getattr(encoder, "encode_ragged", None)
    if ragged is None:
        return _ragged(encoder.encode(prompts))
    return [(tokens.to("cpu", torch.float16), 0) for tokens in ragged(prompts)]


def _ragged(features: Features) -> list[tuple[Float[Tensor, "t E"], int]]:
    """The real tokens of each prompt, which come first, in float16, and the position of the whole prompt's."""
    tokens = features.tokens.to("cpu", torch.float16)
    lengths, positions = features.mask.sum(dim=1).tolist(), features.global_index.tolist()
    return [(tokens[i, :length].clone(), positions[i]) for i, length in enumerate(lengths)]


def _name(encoder: Encoder[Features]) -> str:
    return f"{encoder.name} ({encoder.max_tokens} tokens of {encoder.feature_dim})"
