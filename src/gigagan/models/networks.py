"""G of a configuration: the base generator or an upsampler."""

from gigagan.config import GeneratorConfig, UpsamplerConfig
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler


def build_generator(cfg: GeneratorConfig | UpsamplerConfig, *, feature_dim: int) -> Generator | Upsampler:
    """The network that the section describes, with fresh weights."""
    if isinstance(cfg, UpsamplerConfig):
        return Upsampler(cfg, feature_dim=feature_dim)
    return Generator(cfg, feature_dim=feature_dim)
