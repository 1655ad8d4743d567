"""Building blocks of the networks (paper 3.4): equalized weights, resampling.

Axes: B batch, I and O channels in and out, H and W height and width.
Weights are kept in float32 and cast to the dtype of the features that meet them, so a network runs in the
dtype of its input. `prepare` folds a layer's gain into its weights and casts them once: for drawing, not training.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

ACTIVATION_SLOPE = 0.2  # StyleGAN2's LeakyReLU
ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance through it


def to_float(img: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pixels [0, 255] to the networks' range [-1, 1]."""
    return img.to(torch.float32) / 127.5 - 1


def to_uint8(img: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """The networks' range [-1, 1] to pixels [0, 255], rounded to the nearest and clipped."""
    return ((img.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def finite(img: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The pictures. Raises FloatingPointError for values that are no numbers, which would become black pixels."""
    if not img.isfinite().all():
        raise FloatingPointError("the generator gave values that are no numbers; its weights or the arithmetic are bad")
    return img


def normalize(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x / sqrt(mean(x^2)): unit second moment over the last axis."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


def upsample(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Twice the side by the FIR filter [1, 3, 3, 1]: bilinear interpolation is that filter, edges replicated."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Half the side by area averaging."""
    return F.avg_pool2d(x, 2)


def packable(weight: Tensor) -> bool:
    """Whether a weight can be kept in the layout that a CPU's products read (oneDNN's), not reordered each time."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:  # without AVX-512 oneDNN refuses it
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def pack_linear(weight: Float[Tensor, "O I"]) -> Tensor:
    """A linear layer's weight in that layout, for `packed_linear`; what torch.compile calls for frozen weights."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_linear(x: Float[Tensor, "*B I"], packed: Tensor, bias: Float[Tensor, " O"] | None) -> Float[Tensor, "*B O"]:
    """x W^T + b without gradient, W packed."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def pack_conv(weight: Float[Tensor, "O I k k"]) -> Tensor:
    """A convolution's weight in that layout, for `packed_conv`."""
    padding = [weight.shape[-1] // 2] * 2
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, [1, 1], [1, 1], 1)
    return packed


def packed_conv(
    x: Float[Tensor, "B I H W"], packed: Tensor, bias: Float[Tensor, " O"] | None, *, kernel: int
) -> Float[Tensor, "B O H W"]:
    """x * W + b without gradient, at stride 1 and equal size, W packed."""
    padding = [kernel // 2] * 2
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, padding, [1, 1], [1, 1], 1, "none", [], "")
    return y


def folded(weight: Float[Tensor, "*S"], gain: float, dtype: torch.dtype) -> Float[Tensor, "*S"]:
    """gain * weight in dtype."""
    return (weight if gain == 1 else weight * gain).to(dtype)


class EqualLinear(nn.Module):
    """y = x W^T * lr_mul / sqrt(fan_in) + b * lr_mul with W ~ N(0, 1) / lr_mul: equalized learning rate (paper 3.4).

    LeakyReLU follows when `activation`, its gain folded into the weights.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias: bool = True,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_dim,), bias_init / lr_multiplier)) if bias else None
        self.bias_gain = lr_multiplier * (ACTIVATION_GAIN if activation else 1.0)
        self.gain = self.bias_gain / math.sqrt(in_dim)
        self.activation = activation
        self.packed: Tensor | None = None

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        bias = None if self.bias is None else folded(self.bias, self.bias_gain, x.dtype)
        if self.packed is None:
            y = F.linear(x, folded(self.weight, self.gain, x.dtype), bias)
        else:
            y = packed_linear(x, self.packed, bias)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y

    @torch.no_grad()
    def prepare(self, dtype: torch.dtype, *, pack: bool = True) -> None:
        """Fix the weights for drawing in dtype, packed where they can be (`torch.compile` packs by itself)."""
        self.weight = nn.Parameter(folded(self.weight, self.gain, dtype), requires_grad=False)
        self.gain = 1.0
        if self.bias is not None:
            self.bias = nn.Parameter(folded(self.bias, self.bias_gain, dtype), requires_grad=False)
        self.bias_gain = 1.0
        if pack and packable(self.weight):
            self.packed = pack_linear(self.weight)


class EqualConv(nn.Module):
    """Convolution with an equalized learning rate, stride 2 when `down`; then LeakyReLU when `activation`.

    The output is scaled by `out_gain`, which is folded into the weights: LeakyReLU(g x) = g LeakyReLU(x) for g > 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        bias: bool = True,
        down: bool = False,
        activation: bool = False,
        out_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.out_gain = out_gain * (ACTIVATION_GAIN if activation else 1.0)
        self.gain = self.out_gain / math.sqrt(in_channels * kernel**2)
        self.stride = 2 if down else 1
        self.padding = kernel // 2
        self.activation = activation

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        bias = None if self.bias is None else folded(self.bias, self.out_gain, x.dtype)
        weight = folded(self.weight, self.gain, x.dtype)
        y = F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y

    @torch.no_grad()
    def prepare(self, dtype: torch.dtype, *, pack: bool = True) -> None:
        """Fix the weights for drawing in dtype; they are small, and never packed."""
        weight = folded(self.weight, self.gain, dtype).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.gain = 1.0
        if self.bias is not None:
            self.bias = nn.Parameter(folded(self.bias, self.out_gain, dtype), requires_grad=False)
        self.out_gain = 1.0


def image_pyramid(img: Float[Tensor, "B C H W"], *, levels: int) -> list[Tensor]:
    """The picture at full, half, quarter ... size (index 0 = full), each by area averaging of the last."""
    # Unstated: the filter of the real pyramid; area averaging is anti-aliased and needs no padding.
    pyramid = [img]
    for _ in range(levels - 1):
        pyramid.append(downsample(pyramid[-1]))
    return pyramid
