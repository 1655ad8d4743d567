"""Frozen networks, trained by others and never by us: text encoders (paper 2), image networks (paper 5)."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from gigagan.config import TextConfig
from gigagan.errors import CheckpointError, ConfigError
from gigagan.models.frozen_clip import ClipText, load_clip
from gigagan.models.frozen_files import locate, read_config
from gigagan.models.frozen_image import EfficientNetLite, ImageFeatures, ImageNetwork, load_efficientnet_lite
from gigagan.models.frozen_labels import ClassNames, Unconditional
from gigagan.models.frozen_text import HashedText, MiniLM, TextEncoder, TextFeatures, load_minilm

__all__ = [
    "ClassNames",
    "ClipText",
    "EfficientNetLite",
    "HashedText",
    "ImageFeatures",
    "ImageNetwork",
    "MiniLM",
    "TextEncoder",
    "TextFeatures",
    "Unconditional",
    "build_text_encoder",
    "load_clip",
    "load_efficientnet_lite",
    "load_minilm",
    "load_text_encoder",
]

CLIP_L = (
    "config.json, tokenizer files and model.safetensors of openai/clip-vit-large-patch14 (sha256 "
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb), or of another CLIP"
)
MINILM = (
    "config.json, tokenizer.json and model.safetensors of all-MiniLM-L6-v2 (sha256 "
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db), which `gigagan data weights minilm` gets; or "
    "leave text.path empty for those of the package"
)


def build_text_encoder(
    cfg: TextConfig, device: torch.device | str = "cpu", *, classes: Sequence[str] = ()
) -> TextEncoder:
    """The encoder a configuration names; `classes` are the names of the data's. Raises CheckpointError where its
    weights are missing or damaged, ConfigError where they aren't named or the classes are others than configured."""
    if cfg.encoder == "none":
        return Unconditional(device=device)
    if cfg.encoder == "classes":
        if len(classes) != cfg.num_classes:
            raise ConfigError(
                f"text.num_classes is {cfg.num_classes}, but the data has {len(classes)} folders of classes; "
                + (f"set text.num_classes={len(classes)}" if classes else "give data.path a folder with one for each")
            )
        return ClassNames(classes, device=device)
    if cfg.encoder == "hashed":
        return HashedText(max_tokens=cfg.max_tokens, device=device)
    if cfg.encoder == "clip":
        if not cfg.path:
            raise ConfigError(f"text.path is empty; for text.encoder=clip give a directory with {CLIP_L}")
        return load_clip(_holding_weights(cfg.path, CLIP_L), max_tokens=cfg.max_tokens, device=device)
    if cfg.path:
        return load_minilm(_holding_weights(cfg.path, MINILM), max_tokens=cfg.max_tokens, device=device)
    folder = Path(str(resources.files("gigagan") / "pretrained" / "emoji"))
    return load_minilm(folder, max_tokens=cfg.max_tokens, device=device)


def _holding_weights(path: str, expected: str) -> Path:
    """The folder that text.path names. Raises CheckpointError where there are no weights in it."""
    weights = locate(Path(path))[0] / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file; expected {expected}")
    return Path(path)


def load_text_encoder(model_dir: Path, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder inside a model directory. Raises CheckpointError where it is missing or damaged."""
    config = read_config(model_dir / "text_encoder")
    where = model_dir / "text_encoder" / "config.json"
    encoder, max_tokens = config.get("encoder"), config.get("max_tokens")
    if encoder == "none":
        return Unconditional(device=device)
    if encoder == "classes":
        classes = config.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise CheckpointError(f"{where}: classes is {str(classes)[:60]}; expected a list of names")
        return ClassNames(classes, device=device)
    if encoder not in ("minilm", "clip", "hashed"):
        raise CheckpointError(f"{where}: encoder is {encoder!r}; expected minilm, clip, hashed, classes or none")
    if not isinstance(max_tokens, int) or max_tokens < 4:
        raise CheckpointError(f"{where}: max_tokens is {max_tokens!r}; expected a whole number of at least 4")
    if encoder == "hashed":
        return HashedText(max_tokens=max_tokens, device=device)
    if not config.get("sha256"):
        raise CheckpointError(f"{where}: sha256 is missing; expected the hash of model.safetensors")
    load = load_minilm if encoder == "minilm" else load_clip
    return load(model_dir, max_tokens=max_tokens, device=device)
