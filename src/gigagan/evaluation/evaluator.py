"""The evaluator of a data set: real pictures, frozen features, readers; trained once, kept by hash."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gigagan.data.tensor_files import save_tensors
from gigagan.evaluation.features import FeatureNetwork, Features
from gigagan.evaluation.fit import FIT_VERSION, Lesson, fit
from gigagan.evaluation.readers import Readers
from gigagan.evaluation.real import COPIES, Captioned, RealSet, damaged, read_real
from gigagan.models.frozen import HashedText, MiniLM

CACHE = Path("~/.cache/gigagan")
SentenceEncoder = MiniLM | HashedText


@dataclass(frozen=True)
class Evaluator:
    """All that measures, and what it was made from."""

    real: RealSet
    network: FeatureNetwork
    readers: Readers
    text_encoder: SentenceEncoder
    hash: str

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "Q E"]:
        """Features of texts."""
        return pooled_text(self.text_encoder, captions)


def prepare(
    data: Captioned,
    data_hash: str,
    network: FeatureNetwork,
    network_hash: str,
    text_encoder: SentenceEncoder,
    *,
    cache: Path = CACHE,
    seed: int = 0,
    progress: bool = False,
) -> Evaluator:
    """The evaluator of a data set: from the cache, else trained on its training split."""
    cache = cache.expanduser()
    real = read_real(data, data_hash, network, network_hash, cache, progress=progress)
    key = [real.hash, FIT_VERSION, COPIES, seed, text_encoder.name]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache / f"evaluator-{digest}.safetensors"
    readers = _load(path)
    if readers is None:
        pictures = [real.pictures[item] for item in real.indices("train")]
        copies = damaged(data, pictures, network, seed=seed, progress=progress)
        readers = fit(build_lesson(real, copies, text_encoder), seed=seed, progress=progress)
        save_tensors(path, readers.state_dict())
    return Evaluator(real, network, readers, text_encoder, digest)


def build_lesson(real: RealSet, copies: Features, text_encoder: SentenceEncoder) -> Lesson:
    """What the training split teaches, the damaged copies (whole rounds of that split) included."""
    indices = real.indices("train")
    pictures = [real.pictures[i] for i in indices]
    captions = sorted({p.caption for p in pictures})
    rounds = 1 + len(copies) // len(indices)

    def places(values: list[str], among: list[str]) -> Int[Tensor, " N"]:
        place = {value: i for i, value in enumerate(among)}
        return torch.tensor([place.get(value, -1) for value in values]).repeat(rounds)

    return Lesson(
        cells=torch.cat([real.features.cells[indices], copies.cells]),
        texture=torch.cat([real.features.texture[indices], copies.texture]),
        style=places([p.style for p in pictures], real.styles),
        concept=places([p.concept for p in pictures], real.concepts),
        caption=places([p.caption for p in pictures], captions),
        caption_text=pooled_text(text_encoder, captions),
        concept_text=pooled_text(text_encoder, real.concept_captions),
        num_styles=len(real.styles),
    )


def pooled_text(text_encoder: SentenceEncoder, texts: Sequence[str]) -> Float[Tensor, "Q E"]:
    """Mean of each text's token features, of unit length (the sentence vector that MiniLM was trained for)."""
    vectors = [F.normalize(tokens[0], dim=0) for tokens in text_encoder.encode_ragged(texts)]
    return torch.stack(vectors).cpu() if vectors else torch.zeros(0, text_encoder.feature_dim)


def _load(path: Path) -> Readers | None:
    """Readers that were saved; None where there are none or they are damaged."""
    try:
        tensors = load_file(path)
        readers = Readers.of_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        readers.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
    return readers.eval().requires_grad_(False)
