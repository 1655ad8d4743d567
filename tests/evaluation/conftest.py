"""A small world to measure: squares, discs, rings and crosses in three styles, and a network with random weights."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigagan.data.dataset import Caption, Sample
from gigagan.evaluation.features import FeatureNetwork, Features
from gigagan.models.frozen import EfficientNetLite, ImageFeatures

SIDE = 32
STYLES = ("bold", "pale", "striped")
SHAPES = ("square", "disc", "ring", "cross")
PLACES = ("left", "middle", "right")


def draw(style: str, shape: str, place: str) -> NDArray[np.uint8]:
    """The picture of that, [H, W, 3]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    x, y = x - {"left": 10, "middle": 16, "right": 22}[place] + 0.5, y - 15.5
    radius = np.hypot(x, y)
    mask = {
        "square": (abs(x) < 7) & (abs(y) < 7),
        "disc": radius < 8,
        "ring": (radius < 9) & (radius > 5),
        "cross": ((abs(x) < 3) | (abs(y) < 3)) & (abs(x) < 9) & (abs(y) < 9),
    }[shape]
    color = np.array({"bold": (200, 20, 30), "pale": (190, 200, 250), "striped": (20, 90, 20)}[style], dtype=np.uint8)
    image = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    image[mask] = color
    if style == "striped":
        image[::4] = 0
    return image


@pytest.fixture(scope="session")
def world() -> list[Sample]:
    """Every style of every shape at every place; one picture in nine is a pair held out."""
    samples = []
    for i, style in enumerate(STYLES):
        for j, shape in enumerate(SHAPES):
            for k, place in enumerate(PLACES):
                concept = f"{shape} {place}"
                captions = (
                    Caption(f"a {style} {concept} on a red background", background=(255, 0, 0)),
                    Caption(f"a {concept}", styled=False),
                    Caption(f"a {style} {concept}"),
                )
                split = "test_pair" if (i + j + k) % 9 == 4 else "train"
                meta = {"concept": concept, "style": style, "split": split}
                samples.append(Sample(f"{style}-{concept}", draw(style, shape, place), captions, meta))
    return samples


class FewFeatures(FeatureNetwork):
    """Every eighth feature: enough for a small world, and quick to fit and to compare."""

    @staticmethod
    def vectors(seen: ImageFeatures, images: Tensor) -> Features:
        full = FeatureNetwork.vectors(seen, images)
        return Features(full.pooled[:, ::8], full.cells[:, ::8], full.texture[:, ::8])


@pytest.fixture(scope="session")
def network() -> FeatureNetwork:
    """EfficientNet-Lite with weights drawn by a seed: it sees colors and places, and is here on every machine."""
    net = EfficientNetLite()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(False)
        if name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter.mul_(math.sqrt(2 / parameter[0].numel()))
    return FewFeatures(net)


@pytest.fixture
def painter() -> Callable[..., NDArray[np.uint8]]:
    """`draw`, for tests that need other pictures."""
    return draw


FEW = 40
"""Features of the network below: the distance of 2048 takes ten seconds."""


class TinyInception(nn.Module):
    """The interface of inception-2015-12-05.pt: `layers` to pool3, and a call to probabilities; random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, FEW))
        self.output = nn.Linear(FEW, 1008)

    def forward(self, img: Tensor, no_output_bias: bool = False) -> Tensor:
        features = self.layers((img.to(torch.float32) - 128) / 128)
        logits = self.output(features) - (self.output.bias if no_output_bias else torch.zeros(1008))
        return logits.softmax(dim=1)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file of it."""
    network = TinyInception()
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=draw)
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return path


@pytest.fixture
def tiny_inception(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That file, whose few features pass for pool3."""
    monkeypatch.setattr("gigagan.evaluation.inception.POOL_DIM", FEW)
    return inception_file
