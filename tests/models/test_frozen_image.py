"""EfficientNet-Lite: equal to an unfolded float64 reference, open to gradients of the image only."""

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from gigagan.errors import CheckpointError
from gigagan.models import frozen_image
from gigagan.models.frozen import EfficientNetLite, load_efficientnet_lite
from gigagan.models.frozen_files import file_sha256, write_config

# Kernel, stride and output channels of each block of Lite0, written out.
LITE0 = (
    [(3, 1, 16), (3, 2, 24), (3, 1, 24), (5, 2, 40), (5, 1, 40), (3, 2, 80), (3, 1, 80), (3, 1, 80)]
    + [(5, 1, 112)] * 3
    + [(5, 2, 192), (5, 1, 192), (5, 1, 192), (5, 1, 192), (3, 1, 320)]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the shipped names."""
    folder = tmp_path_factory.mktemp("lite0")
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in frozen_image._shipped_shapes(EfficientNetLite()).items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith("running_var"):
            noise = noise.abs() + 0.5
        elif len(shape) == 4:
            noise = noise * (2 / noise[0].numel()) ** 0.5
        tensors[name] = noise
    save_file(tensors, folder / "model.safetensors")
    write_config(folder, {"sha256": file_sha256(folder / "model.safetensors")})
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> EfficientNetLite:
    return load_efficientnet_lite("lite0", folder=folder)


def same(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME convolution: an output for every stride-th pixel, what padding is odd at the end."""
    groups = 1 if weight.shape[1] > 1 or x.shape[1] == 1 else x.shape[1]
    padding: list[int] = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + weight.shape[2] - n, 0)
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)


def reference(w: dict[str, Tensor], img: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Lite0 with its batch norm as batch norm; img holds pixels in 0..255."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training=False, eps=1e-3)

    x = F.relu6(norm(same((img - 127) / 128, w["_conv_stem.weight"], 2), "_bn0"))
    maps = []
    for i, (kernel, stride, channels) in enumerate(LITE0):
        block = f"_blocks.{i}"
        y = x
        if i > 0:
            y = F.relu6(norm(same(y, w[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        depthwise = w[f"{block}._depthwise_conv.weight"]
        assert depthwise.shape[2] == kernel
        y = F.relu6(norm(same(y, depthwise, stride), f"{block}._bn1"))
        y = norm(same(y, w[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
        assert x.shape[1] == channels
        if i in (0, 2, 4, 10, 15):
            maps.append(x)
    pooled = F.relu6(norm(same(x, w["_conv_head.weight"], 1), "_bn1")).mean(dim=(2, 3))
    return maps, pooled, pooled @ w["_fc.weight"].T + w["_fc.bias"]


@pytest.mark.parametrize("size", [(64, 64), (50, 37)])
def test_equals_the_unfolded_reference(network: EfficientNetLite, folder: Path, size: tuple[int, int]) -> None:
    weights = {name: w.double() for name, w in load_file(folder / "model.safetensors").items()}
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1))
    features = network(pixels / 127.5 - 1, min_res=0)
    maps, pooled, logits = reference(weights, pixels.double())
    for ours, theirs in zip([*features.maps, features.pooled, features.logits], [*maps, pooled, logits], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-4)


def test_maps_have_the_promised_strides_and_channels(network: EfficientNetLite) -> None:
    features = network(torch.zeros(2, 3, 128, 128))
    assert [tuple(m.shape[1:]) for m in features.maps] == [
        (16, 64, 64),
        (24, 32, 32),
        (40, 16, 16),
        (112, 8, 8),
        (320, 4, 4),
    ]
    assert features.pooled.shape == (2, 1280)
    assert features.logits.shape == (2, 1000)


def test_small_images_are_enlarged_first(network: EfficientNetLite) -> None:
    img = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    enlarged = F.interpolate(img, size=(128, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(img).pooled, network(enlarged).pooled, atol=1e-3, rtol=1e-4)
    assert network(img, min_res=0).maps[-1].shape[2:] == (1, 1)


def test_the_image_takes_a_gradient_and_no_parameter_does(network: EfficientNetLite) -> None:
    img = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    features = network(img)
    for value in (*features.maps, features.pooled, features.logits):
        (gradient,) = torch.autograd.grad(value.square().mean(), img, retain_graph=True)
        assert gradient.abs().max() > 0
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_lite1_is_deeper_between_the_ends() -> None:
    assert len(EfficientNetLite(1.0).blocks) == 16
    assert len(EfficientNetLite(1.1).blocks) == 21
    assert EfficientNetLite(1.1).taps == [0, 3, 6, 14, 20]


def test_wrong_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gigagan data weights lite1"):
        load_efficientnet_lite("lite1", folder=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"tensor _blocks\.2\._bn2\.weight has shape|_blocks"):
        load_efficientnet_lite("lite1", folder=folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"_fc.bias": tensors["_fc.bias"] + 1}, tmp_path / "model.safetensors")
    write_config(tmp_path, {"sha256": file_sha256(folder / "model.safetensors")})
    with pytest.raises(CheckpointError, match="sha256"):
        load_efficientnet_lite("lite0", folder=tmp_path)


def draw_traffic_light() -> Image.Image:
    img = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(img)
    draw.rectangle((75, 15, 149, 209), fill=(40, 40, 40))
    for y, color in ((20, (230, 40, 30)), (82, (250, 190, 20)), (144, (40, 190, 70))):
        draw.ellipse((82, y, 142, y + 60), fill=color)
    return img


@pytest.mark.parametrize("name", ["lite0", "lite1"])
def test_the_shipped_weights_know_a_traffic_light(name: Literal["lite0", "lite1"]) -> None:
    try:
        network = load_efficientnet_lite(name)
    except CheckpointError:
        pytest.skip(f"needs the weights; run: gigagan data weights {name}")
    pixels = torch.frombuffer(bytearray(draw_traffic_light().tobytes()), dtype=torch.uint8).view(224, 224, 3)
    logits = network(pixels.permute(2, 0, 1)[None] / 127.5 - 1).logits
    assert 920 in logits[0].topk(5).indices.tolist()  # ImageNet's traffic light
