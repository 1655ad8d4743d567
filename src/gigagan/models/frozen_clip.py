"""CLIP's text tower as the frozen encoder (paper 2), through transformers, from a directory on disk.

Axes: B prompts, T tokens, E features.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from gigagan.errors import CheckpointError, MissingExtra
from gigagan.models.frozen_files import (
    PromptTokenizer,
    check_sha256,
    file_sha256,
    locate,
    read_config,
    read_licences,
    write_config,
    write_licences,
)
from gigagan.models.frozen_text import TextFeatures


class ClipText:
    """Token features of CLIP's text tower. The whole prompt stands at EOT, the token with the highest id."""

    # Paper: t_local is all tokens but EOT, and no padding mask is named: what follows EOT stays in (mask all True).

    name = "clip"

    def __init__(
        self,
        network: Any,
        tokenizer: PromptTokenizer,
        *,
        device: torch.device | str = "cpu",
        licences: dict[str, bytes] | None = None,
    ) -> None:
        if tokenizer.max_tokens > (positions := network.config.max_position_embeddings):
            raise CheckpointError(
                f"text.max_tokens is {tokenizer.max_tokens}, but the encoder takes {positions}; use at most {positions}"
            )
        self.feature_dim = int(network.config.hidden_size)
        self.max_tokens = tokenizer.max_tokens
        self.device = torch.device(device)
        # Kept at float16's values, so that what a model is trained with is to the bit what its directory stores.
        self.network = network.half().float().to(self.device).requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.licences = licences or {}

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, each computed alone: the same bits whatever it is asked beside."""
        ids = self._ids(prompts)
        with torch.no_grad():
            tokens = torch.cat([self.features(one) for one in ids.split(1)])
        return TextFeatures(tokens, torch.ones_like(ids, dtype=torch.bool), ids.argmax(dim=1))

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, begin and EOT included."""
        return self.tokenizer.count(prompt)

    def save(self, directory: Path) -> None:
        """Write directory/text_encoder (weights in float16, licences) and directory/tokenizer."""
        folder = directory / "text_encoder"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: w.to("cpu", torch.float16).contiguous() for name, w in self.network.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        stored = {"encoder": self.name, "max_tokens": self.max_tokens} | self.network.config.to_dict()
        write_config(folder, stored | {"dtype": "float16", "sha256": file_sha256(folder / "model.safetensors")})
        write_licences(folder, self.licences)
        self.tokenizer.save(directory / "tokenizer")

    def _ids(self, prompts: Sequence[str]) -> Int[Tensor, "B T"]:
        # Unstated: the padding token; 0, as CLIP's own tokenizer pads. The tower is causal, so EOT never sees it.
        rows = [self.tokenizer.ids(prompt) for prompt in prompts]
        return torch.tensor([ids + [0] * (self.max_tokens - len(ids)) for ids in rows], device=self.device)

    def features(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Of tokens: the penultimate layer's output."""
        # Unstated: whether CLIP's final LayerNorm follows; it doesn't, as is usual where this layer is taken.
        return self.network(input_ids=ids, output_hidden_states=True).hidden_states[-2]


def load_clip(folder: Path, *, max_tokens: int = 77, device: torch.device | str = "cpu") -> ClipText:
    """From a model directory, or from a transformers one (config.json, model.safetensors, tokenizer files).

    Raises CheckpointError that names what is missing or misshapen, MissingExtra without transformers.
    """
    weights_dir, tokenizer_dir = locate(folder)
    network = load_network("CLIPTextModel", weights_dir, kinds=("clip", "clip_text_model"))
    tokenizer = read_tokenizer(tokenizer_dir, max_tokens)
    return ClipText(network, tokenizer, device=device, licences=read_licences(weights_dir))


def load_network(class_name: str, folder: Path, *, kinds: tuple[str, ...]) -> Any:
    """A network of transformers from config.json and model.safetensors; `kinds` are the model types that will do."""
    transformers = _import_transformers()
    config = read_config(folder)
    if config.get("model_type") not in kinds:
        kind = config.get("model_type")
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {kind!r}; expected {' or '.join(kinds)}")
    path = folder / "model.safetensors"
    try:
        with _quiet_transformers():
            # Misshapen tensors are only ignored until they are named below.
            network, report = getattr(transformers, class_name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be loaded ({' '.join(str(error).split())})") from None
    for name in sorted(report["missing_keys"]):
        raise CheckpointError(f"{path}: tensor {name} is missing; get the file again")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}; expected {list(expected)}")
    check_sha256(path, config.get("sha256", ""))
    return network


def read_tokenizer(folder: Path, max_tokens: int) -> PromptTokenizer:
    """tokenizer.json, or one made of the older vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return PromptTokenizer.read(folder, max_tokens)
    try:
        made = _import_transformers().CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'vocab.json'}: can't be read as CLIP's vocabulary ({reason})") from None
    return PromptTokenizer(made.backend_tokenizer.to_str().encode(), max_tokens)


def _import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise MissingExtra("transformers", "clip") from None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report and bar: the faults it would report are raised here."""
    logging = _import_transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
