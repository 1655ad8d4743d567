"""Frozen networks are known again by what they say, up to rounding."""

import copy

import pytest
import torch

from gigagan.data.features import CaptionFeatures
from gigagan.errors import ConfigError
from gigagan.evaluation.readers import Readers
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.training.contrast import HeadsContrast
from gigagan.training.probes import check_frozen, probe_frozen

CPU = torch.device("cpu")
TEXTS = HashedText(max_tokens=16)


def heads(seed: int) -> HeadsContrast:
    generator = torch.Generator().manual_seed(seed)
    dims = {"cells_dim": 4, "texture_dim": 4, "text_dim": TEXTS.feature_dim}
    readers = Readers(**dims, num_styles=0, num_concepts=0, generator=generator)
    return HeadsContrast(readers, torch.zeros(0, 1), CaptionFeatures(TEXTS))


def test_the_same_networks_are_known_and_others_named(random_lite0: EfficientNetLite) -> None:
    before = probe_frozen(TEXTS, random_lite0, heads(0), CPU)
    assert before.keys() == {"text.path", "vision.path", "vision.heads"}
    rounded = copy.deepcopy(random_lite0).to(torch.bfloat16).float()
    check_frozen(before, probe_frozen(TEXTS, rounded, heads(0), CPU), ())

    trained_on = copy.deepcopy(random_lite0)
    for parameter in trained_on.parameters():
        parameter.data *= 1.2
    for other, key in (
        (probe_frozen(TEXTS, random_lite0, heads(1), CPU), "vision.heads"),
        (probe_frozen(TEXTS, trained_on, heads(0), CPU), "vision.path"),
    ):
        with pytest.raises(ConfigError, match=f"{key}: isn't the network that the run was begun with"):
            check_frozen(before, other, ())
        check_frozen(before, other, (key,))


def test_what_a_run_has_no_use_for_is_no_obstacle() -> None:
    probes = probe_frozen(TEXTS, None, None, CPU)
    assert probes.keys() == {"text.path"}
    check_frozen({}, probes, ())  # states of before
    check_frozen({**probes, "vision.path": [1.0]}, probes, ())
