"""Frozen text encoders behind one protocol (paper 2): MiniLM in the package, hashed words for tests.

An encoder runs each prompt at its own length (or, CLIP, at a fixed one), never beside padding of others, so that a
prompt's features don't depend on its neighbours. Axes: B prompts, T = max_tokens, t tokens of one prompt, E features.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import save
from torch import Tensor

from gigagan.errors import CheckpointError
from gigagan.models.frozen_files import (
    PromptTokenizer,
    file_sha256,
    locate,
    read_config,
    read_licences,
    read_tensors,
    write_config,
    write_licences,
)
from gigagan.models.layers import pack_linear, packable, packed_linear


@dataclass(frozen=True)
class TextFeatures:
    """What a frozen encoder says of some prompts, padded to T tokens."""

    tokens: Float[Tensor, "B T E"]
    """A vector for each token, zero where there is none."""
    mask: Bool[Tensor, "B T"]
    """True where there is a real token."""
    global_index: Int[Tensor, " B"]
    """Position of the token that stands for the whole prompt; T turns it into t_global."""

    @classmethod
    def from_ragged(cls, tokens: Sequence[Tensor], max_tokens: int) -> "TextFeatures":
        """Prompts of different lengths, padded; the whole prompt stands at position 0 (MiniLM, hashed)."""
        padded = torch.stack([F.pad(one, (0, 0, 0, max_tokens - len(one))) for one in tokens])
        lengths = torch.tensor([len(one) for one in tokens], device=padded.device)
        mask = torch.arange(max_tokens, device=padded.device) < lengths[:, None]
        return cls(padded, mask, torch.zeros_like(lengths))

    def first(self, count: int) -> "TextFeatures":
        """Those of the first prompts."""
        return TextFeatures(self.tokens[:count], self.mask[:count], self.global_index[:count])

    def to(self, device: torch.device | str) -> "TextFeatures":
        """The same on another device."""
        return TextFeatures(self.tokens.to(device), self.mask.to(device), self.global_index.to(device))

    def __len__(self) -> int:
        return len(self.tokens)


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen network from prompts to token features."""

    name: str
    feature_dim: int
    max_tokens: int

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, float32, without gradient; a prompt's don't depend on the others."""

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, special ones included; above max_tokens the rest is dropped."""

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder and, where there is one, directory/tokenizer."""


class HashedText:
    """A seeded vector for each word, for tests and the tiny preset: no weights, no meaning."""

    name = "hashed"
    feature_dim = 32

    def __init__(self, *, max_tokens: int = 32, device: torch.device | str = "cpu") -> None:
        self.max_tokens = max_tokens
        self.device = torch.device(device)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts: begin, words, end."""
        return TextFeatures.from_ragged(self.encode_ragged(prompts), self.max_tokens)

    def encode_ragged(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features of each prompt, [t, E]."""
        return [self._encode_one(prompt) for prompt in prompts]

    def count_tokens(self, prompt: str) -> int:
        """Words and punctuation marks, and the two ends."""
        return len(self._words(prompt)) + 2

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder/config.json, which is all there is."""
        write_config(directory / "text_encoder", {"encoder": self.name, "max_tokens": self.max_tokens})

    def _encode_one(self, prompt: str) -> Tensor:
        words = [self._vector(word) for word in self._words(prompt)[: self.max_tokens - 2]]
        # The first token stands for the prompt, so it sums the words up as [CLS] does.
        begin = torch.stack([self._vector("<begin>"), *words]).sum(dim=0) / (len(words) + 1) ** 0.5
        return torch.stack([begin, *words, self._vector("<end>")]).to(self.device)

    def _vector(self, word: str) -> Tensor:
        digest = hashlib.shake_256(word.encode()).digest(self.feature_dim)
        # Mean 0, variance 1 over the 256 equally likely bytes.
        return (torch.tensor(list(digest), dtype=torch.float32) - 127.5) / ((256**2 - 1) / 12) ** 0.5

    @staticmethod
    def _words(prompt: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", prompt.lower())


_BERT_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)


class MiniLM:
    """all-MiniLM-L6-v2: a BERT of 6 layers, width 384. The prompt as a whole stands at position 0: its tokens' mean."""

    # Paper: takes the penultimate layer of CLIP. That choice is CLIP's, whose last layer serves a contrastive loss on
    # one token; MiniLM was trained on the mean of its last layer's tokens, so the last hidden states are the features.

    name = "minilm"

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Tensor],
        tokenizer: PromptTokenizer,
        *,
        device: torch.device | str = "cpu",
        licences: dict[str, bytes] | None = None,
    ) -> None:
        if tokenizer.max_tokens > (positions := config["max_position_embeddings"]):
            raise CheckpointError(
                f"text.max_tokens is {tokenizer.max_tokens}, but the encoder takes {positions}; use at most {positions}"
            )
        self.config = config
        self.feature_dim = int(config["hidden_size"])
        self.max_tokens = tokenizer.max_tokens
        self.device = torch.device(device)
        # Kept at float16's values, so that what a model is trained with is to the bit what its directory stores.
        self.weights = {name: w.to(self.device, torch.float16).float() for name, w in weights.items()}
        self.tokenizer = tokenizer
        self.licences = licences or {}
        self.packing = True
        """Whether weights may be kept in the layout of the CPU's products, which exporters can't see into."""
        self._packed: dict[str, Tensor] = {}

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, each computed alone: the same bits whatever it is asked beside."""
        with torch.no_grad():
            tokens = [self.features(self._ids(prompt))[0] for prompt in prompts]
        return TextFeatures.from_ragged(tokens, self.max_tokens)

    def encode_ragged(self, prompts: Sequence[str], batch: int = 64) -> list[Tensor]:
        """Features of each prompt, [t, E], in batches of one length: fast, and equal to encode but for rounding."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(all_ids := [self._ids(prompt) for prompt in prompts]):
            by_length[ids.shape[1]].append(index)
        tokens: dict[int, Tensor] = {}
        with torch.no_grad():
            for indices in by_length.values():
                for start in range(0, len(indices), batch):
                    chunk = indices[start : start + batch]
                    tokens.update(zip(chunk, self.features(torch.cat([all_ids[i] for i in chunk])), strict=True))
        return [tokens[i] for i in range(len(prompts))]

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, [CLS] and [SEP] included."""
        return self.tokenizer.count(prompt)

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder (weights in float16, licences) and directory/tokenizer."""
        folder = directory / "text_encoder"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: w.to("cpu", torch.float16) for name, w in self.weights.items()}
        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        stored = {"encoder": self.name, "max_tokens": self.max_tokens} | {key: self.config[key] for key in _BERT_KEYS}
        write_config(folder, stored | {"sha256": file_sha256(folder / "model.safetensors")})
        write_licences(folder, self.licences)
        self.tokenizer.save(directory / "tokenizer")

    def _ids(self, prompt: str) -> Int[Tensor, "1 t"]:
        return torch.tensor([self.tokenizer.ids(prompt)], device=self.device)

    def features(self, ids: Int[Tensor, "B t"]) -> Float[Tensor, "B t E"]:
        """Of equally long prompts: last hidden states, and at [CLS] their mean, where MiniLM puts a sentence."""
        x = self._forward(ids)
        return torch.cat([x.mean(dim=1, keepdim=True), x[:, 1:]], dim=1)

    def _forward(self, ids: Int[Tensor, "B t"]) -> Float[Tensor, "B t E"]:
        """The last hidden states of equally long prompts (Devlin et al. 2018)."""
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                self._linear(x, f"{layer}.attention.self.{part}")
                .unflatten(2, (self.config["num_attention_heads"], -1))
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = self._norm(x + self._linear(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
            hidden = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(hidden, f"{layer}.output.dense"), f"{layer}.output")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if not self.packing or not packable(weight):
            return F.linear(x, weight, bias)
        if name not in self._packed:
            self._packed[name] = pack_linear(weight)
        return packed_linear(x, self._packed[name], bias)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        name = name if name.endswith("LayerNorm") else f"{name}.LayerNorm"
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=self.config["layer_norm_eps"])


def load_minilm(folder: Path, *, max_tokens: int = 32, device: torch.device | str = "cpu") -> MiniLM:
    """From a model directory (text_encoder/, tokenizer/) or from a plain one that holds all the files."""
    weights_dir, tokenizer_dir = locate(folder)
    config = read_config(weights_dir)
    missing = [key for key in _BERT_KEYS if key not in config]
    if missing:
        raise CheckpointError(f"{weights_dir / 'config.json'}: {missing[0]} is missing; expected a BERT's config")
    weights = read_tensors(weights_dir / "model.safetensors", _bert_shapes(config), config.get("sha256", ""))
    tokenizer = PromptTokenizer.read(tokenizer_dir, max_tokens)
    return MiniLM(config, weights, tokenizer, device=device, licences=read_licences(weights_dir))


def _bert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a BERT that is used; the pooler isn't."""
    E, hidden = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], E),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], E),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], E),
    }
    norms = ["embeddings.LayerNorm"]
    linears: dict[str, tuple[int, ...]] = {}
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        linears |= {f"{layer}.attention.self.{part}": (E, E) for part in ("query", "key", "value")}
        linears |= {f"{layer}.attention.output.dense": (E, E), f"{layer}.intermediate.dense": (hidden, E)}
        linears |= {f"{layer}.output.dense": (E, hidden)}
    for name in norms:
        shapes |= {f"{name}.weight": (E,), f"{name}.bias": (E,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes
