"""Mixing: the coarse layers of one picture and the fine layers of another (paper 9)."""

import torch

from gigagan.errors import ConfigError
from gigagan.models.latents import Latents


def check_layer(layer: int, num_layers: int) -> int:
    """Raises ConfigError unless a boundary lies between two layers, or at an end."""
    if not 0 <= layer <= num_layers:
        raise ConfigError(f"layer {layer} can't be; expected 0 (all fine) to {num_layers} (all coarse)")
    return layer


def mix(coarse: Latents, fine: Latents, layer: int) -> Latents:
    """Layers before `layer` of `coarse`, the others of `fine`: styles, and the words that cross-attention reads.

    With two seeds of one prompt this is style mixing, with two prompts at one seed prompt mixing. At 0 it is `fine`
    itself, at the number of layers `coarse` itself, and every level of the pyramid whose layers all lie before the
    boundary is that of `coarse` to the bit. An upsampler's layers are finer than all, and follow `fine`. Raises
    ConfigError for a layer that isn't there.
    """
    # Paper: prompt mixing switches both styles and words at the second half of the layers; any layer can be chosen.
    check_layer(layer, coarse.num_layers)
    return Latents(
        torch.cat([coarse.ws[:, :layer], fine.ws[:, layer:]], dim=1),
        torch.cat([coarse.t_local[:, :layer], fine.t_local[:, layer:]], dim=1),
        torch.cat([coarse.mask[:, :layer], fine.mask[:, layer:]], dim=1),
        coarse.enlarged if layer == coarse.num_layers else fine.enlarged,
    )
