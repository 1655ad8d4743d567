"""EfficientNet-Lite: frozen ImageNet features for losses (Lite0) and for measuring (Lite1).

EfficientNet (Tan and Le 2019) without squeeze-and-excitation, with ReLU6, its stem and head not scaled. Batch norm is
folded into the convolutions when the weights are read. Axes: B batch, C channels, H and W height and width.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gigagan.errors import CheckpointError
from gigagan.models.frozen_files import read_config, read_tensors

CACHE = Path("~/.cache/gigagan")
# Directory in the cache (data/weights.py names it so), and depth over that of Lite0.
LITE = {"lite0": ("lite0-57934424", 1.0), "lite1": ("lite1-77cc7160", 1.1)}
# Expansion, kernel, stride, channels and repeats of each stage (EfficientNet-B0); the ends are never deepened.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
TAPPED_STAGES = (0, 1, 2, 4, 6)  # The last stage at strides 2, 4, 8, 16 and 32.
STEM_CHANNELS, HEAD_CHANNELS, NUM_CLASSES = 32, 1280, 1000
BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True)
class ImageFeatures:
    """What a frozen image network sees in a batch."""

    maps: list[Float[Tensor, "B _ _ _"]]
    """Feature maps, finest first. EfficientNet-Lite: at strides 2, 4, 8, 16 and 32 of the (enlarged) image, 16, 24,
    40, 112 and 320 channels. CLIP: patches after a third, two thirds and all of its layers."""
    pooled: Float[Tensor, "B P"]
    """The image as one vector. EfficientNet-Lite: mean of its last layer, 1280 wide. CLIP: its embedding."""
    logits: Float[Tensor, "B K"] | None = None
    """ImageNet classes, 1000; None where a network has none."""


@runtime_checkable
class ImageNetwork(Protocol):
    """A frozen network that losses look through."""

    map_channels: list[int]
    """Width of each map."""
    judged_maps: dict[int, bool]
    """Maps that the vision-aided discriminator judges, and whether it halves their side first."""

    def __call__(self, img: Float[Tensor, "B 3 H W"], *, min_res: int = 128) -> ImageFeatures:
        """Features of images in [-1, 1], enlarged to at least min_res px where the network takes any size."""


class SameConv(nn.Module):
    """Convolution with bias, padded so that the output's side is the input's over the stride, rounded up.

    The odd pixel of padding goes to the right and bottom (TensorFlow's SAME, which the weights were trained with).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel, kernel), requires_grad=False
        )
        self.bias = nn.Parameter(torch.empty(out_channels), requires_grad=False)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        kernel = self.weight.shape[-1]
        bottom, right = (max((math.ceil(n / self.stride) - 1) * self.stride + kernel - n, 0) for n in x.shape[2:])
        padding = (bottom // 2, right // 2)
        if bottom % 2 or right % 2:
            x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
            padding = (0, 0)
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=padding, groups=self.groups)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; x is added where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = SameConv(in_channels, inner, kernel=1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = SameConv(inner, out_channels, kernel=1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Images to ImageFeatures; its parameters never take a gradient, the image does."""

    def __init__(self, depth: float = 1.0) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        self.taps: list[int] = []
        self.map_channels = [STAGES[stage][3] for stage in TAPPED_STAGES]
        # A map at stride 2 says little that D doesn't see, and costs the most.
        self.judged_maps = {1: True, 2: True, 3: False, 4: False}
        channels = STEM_CHANNELS
        for stage, (expansion, kernel, stride, out_channels, repeats) in enumerate(STAGES):
            deepened = repeats if stage in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
            for i in range(deepened):
                step = stride if i == 0 else 1
                block = MBConv(channels, out_channels, expansion=expansion, kernel=kernel, stride=step)
                self.blocks.append(block)
                channels = out_channels
            if stage in TAPPED_STAGES:
                self.taps.append(len(self.blocks) - 1)
        self.head = SameConv(channels, HEAD_CHANNELS, kernel=1)
        self.classifier = nn.Linear(HEAD_CHANNELS, NUM_CLASSES).requires_grad_(False)

    def forward(self, img: Float[Tensor, "B 3 H W"], *, min_res: int = 128) -> ImageFeatures:
        """Features of images in [-1, 1]; those with a side below min_res are enlarged first (0 = never)."""
        side = min(img.shape[2:])
        if side < min_res:
            size = [round(n * min_res / side) for n in img.shape[2:]]
            img = F.interpolate(img, size=size, mode="bilinear", align_corners=False, antialias=True)
        x = ((img + 1) * 127.5 - 127) / 128
        x = F.relu6(self.stem(x.to(self.stem.weight.dtype)))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        pooled = F.relu6(self.head(x)).mean(dim=(2, 3))
        return ImageFeatures(maps, pooled, self.classifier(pooled))


def load_efficientnet_lite(
    name: Literal["lite0", "lite1"], device: torch.device | str = "cpu", *, folder: Path | None = None
) -> EfficientNetLite:
    """The network with its weights out of a folder, by default the cache that `gigagan data weights` fills.

    Raises CheckpointError where they are missing or damaged.
    """
    cached, depth = LITE[name]
    folder = CACHE.expanduser() / cached if folder is None else folder
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder / 'model.safetensors'}: no such file; the weights of EfficientNet-{name.title()} (as published, "
            f"sha256 {cached.partition('-')[2]}...) come by: gigagan data weights {name}"
        )
    with torch.device("meta"):
        network = EfficientNetLite(depth)
    shipped = _shipped_shapes(network)
    weights = read_tensors(folder / "model.safetensors", shipped, read_config(folder).get("sha256", ""))
    network.load_state_dict(_fold(weights, network), assign=True)
    for parameter in network.parameters():
        if parameter.ndim == 4:  # a quarter faster on CPUs
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network.requires_grad_(False).eval().to(device)


def _convolutions(network: EfficientNetLite) -> dict[str, tuple[str, str]]:
    """Our name of each convolution, to the shipped names of it and of the batch norm after it."""
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i, block in enumerate(network.blocks):
        parts = {"expand": ("_expand_conv", "_bn0")} if getattr(block, "expand", None) is not None else {}
        parts |= {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        for part, (conv, norm) in parts.items():
            names[f"blocks.{i}.{part}"] = (f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    return names


def _shipped_shapes(network: EfficientNetLite) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the shipped file that is used."""
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, (conv, norm) in _convolutions(network).items():
        weight = network.get_parameter(f"{ours}.weight")
        shapes[f"{conv}.weight"] = tuple(weight.shape)
        shapes |= {f"{norm}.{part}": (len(weight),) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"_fc.weight": (NUM_CLASSES, HEAD_CHANNELS), "_fc.bias": (NUM_CLASSES,)}


def _fold(weights: dict[str, Tensor], network: EfficientNetLite) -> dict[str, Tensor]:
    """gamma (Wx - mean) / sqrt(var + eps) + beta as one convolution with bias."""
    folded = {"classifier.weight": weights["_fc.weight"], "classifier.bias": weights["_fc.bias"]}
    for ours, (conv, norm) in _convolutions(network).items():
        gain = weights[f"{norm}.weight"] * (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).rsqrt()
        folded[f"{ours}.weight"] = weights[f"{conv}.weight"] * gain[:, None, None, None]
        folded[f"{ours}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    return folded
