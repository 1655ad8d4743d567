"""Every knob of a run: one frozen tree, its presets, overrides and messages. Imports no torch.

Precedence: defaults < preset or file < `section.key=value` overrides. `None` never means "choose for me".
"""

from gigagan.config.load import from_dict, load, preset_names, to_yaml
from gigagan.config.loss import LossConfig, Weights
from gigagan.config.networks import (
    AttentionConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    Section,
    UpsamplerConfig,
    VisionConfig,
)
from gigagan.config.run import (
    AugmentConfig,
    DataConfig,
    DegradeConfig,
    FilterConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from gigagan.config.schedule import value_at

__all__ = [
    "AttentionConfig",
    "AugmentConfig",
    "DataConfig",
    "DegradeConfig",
    "DiscriminatorConfig",
    "FilterConfig",
    "GeneratorConfig",
    "LossConfig",
    "OptimizerConfig",
    "RunConfig",
    "Section",
    "TextConfig",
    "TrainConfig",
    "UpsamplerConfig",
    "VisionConfig",
    "Weights",
    "from_dict",
    "load",
    "preset_names",
    "to_yaml",
    "value_at",
]
