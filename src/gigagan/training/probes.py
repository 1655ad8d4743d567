"""What a run's frozen networks say of a fixed input, by which a restart knows whether they are the same ones."""

from collections.abc import Collection

import torch

from gigagan.data.features import PROBE
from gigagan.errors import ConfigError
from gigagan.models.frozen import ImageNetwork, TextEncoder
from gigagan.training.contrast import Contrast, HeadsContrast

SIDE = 64
COUNT = 8
TOLERANCE = 0.02
"""Another machine's rounding is far below; another network's numbers are as good as random."""

Probes = dict[str, list[float]]
"""A few numbers by the key of the configuration that says where the network's weights lie."""


@torch.no_grad()
def probe_frozen(
    encoder: TextEncoder, image_network: ImageNetwork | None, contrast: Contrast | None, device: torch.device
) -> Probes:
    """Of each network that there is. Labels have no weights of their own."""
    found: dict[str, torch.Tensor] = {}
    if encoder.name not in ("none", "classes"):
        features = encoder.encode([PROBE])
        found["text.path"] = features.tokens[0, features.global_index[0]]
    if image_network is not None:
        ramp = torch.linspace(-1, 1, 3 * SIDE * SIDE, device=device).view(1, 3, SIDE, SIDE)
        found["vision.path"] = image_network(ramp, min_res=SIDE).pooled[0]
    if isinstance(contrast, HeadsContrast):
        found["vision.heads"] = contrast.text([PROBE])[0]
    return {key: values[:COUNT].float().tolist() for key, values in found.items()}


def check_frozen(before: Probes, now: Probes, allow: Collection[str]) -> None:
    """Raises ConfigError naming the network that is another one than before; those in `allow` may be."""
    for key in before.keys() & now.keys() - set(allow):
        if not torch.allclose(torch.tensor(before[key]), torch.tensor(now[key]), rtol=TOLERANCE, atol=TOLERANCE):
            raise ConfigError(
                f"{key}: isn't the network that the run was begun with; give the same one, or --allow-change {key}"
            )
