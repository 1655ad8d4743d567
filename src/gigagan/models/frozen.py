"""Frozen third-party networks: text encoders and image networks, trained by others and never by us (paper 2, 5)."""

from gigagan.models.frozen_text import (
    HashedText,
    MiniLM,
    TextEncoder,
    TextFeatures,
    build_text_encoder,
    load_text_encoder,
)

__all__ = [
    "HashedText",
    "MiniLM",
    "TextEncoder",
    "TextFeatures",
    "build_text_encoder",
    "load_text_encoder",
]
