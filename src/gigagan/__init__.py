"""GigaGAN, open: a prompt becomes a picture in one pass of a generator.

The public names are resolved when they are first used (PEP 562): importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gigagan.checkpoint import load_model, save_model
    from gigagan.config import RunConfig
    from gigagan.errors import CheckpointError, ConfigError, DataError, GigaGANError, MissingExtra, PromptError
    from gigagan.models.discriminator import Discriminator
    from gigagan.models.generator import Generator
    from gigagan.pipeline import Pipeline, PipelineOutput

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Discriminator",
    "Generator",
    "GigaGANError",
    "MissingExtra",
    "Pipeline",
    "PipelineOutput",
    "PromptError",
    "RunConfig",
    "load_model",
    "save_model",
]

_HOME = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "Discriminator": "models.discriminator",
    "Generator": "models.generator",
    "GigaGANError": "errors",
    "MissingExtra": "errors",
    "Pipeline": "pipeline",
    "PipelineOutput": "pipeline",
    "PromptError": "errors",
    "RunConfig": "config",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gigagan' has no attribute {name!r}")
    return getattr(import_module(f"gigagan.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
