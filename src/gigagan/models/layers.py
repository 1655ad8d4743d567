"""Building blocks of the networks (paper 3.2, 3.4): equalized weights, resampling, adaptive convolution.

Axes: B batch, N filters in a bank, I and O channels in and out, H and W height and width, S style.
Weights are kept in float32 and cast to the dtype of the features that meet them, so a network runs in the
dtype of its input; demodulation is always float32.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

DEMODULATION_EPS = 1e-8  # StyleGAN2
ACTIVATION_SLOPE = 0.2  # StyleGAN2's LeakyReLU
ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance through it


def to_float(img: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pixels [0, 255] to the networks' range [-1, 1]."""
    return img.to(torch.float32) / 127.5 - 1


def to_uint8(img: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """The networks' range [-1, 1] to pixels [0, 255], rounded to the nearest and clipped."""
    return ((img.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def normalize(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x / sqrt(mean(x^2)): unit second moment over the last axis."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


def upsample(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Twice the side by the FIR filter [1, 3, 3, 1]: bilinear interpolation is that filter, edges replicated."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Half the side by area averaging."""
    return F.avg_pool2d(x, 2)


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

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        y = F.linear(x, (self.weight * self.gain).to(x.dtype), bias)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y


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
        bias = None if self.bias is None else (self.bias * self.out_gain).to(x.dtype)
        y = F.conv2d(x, (self.weight * self.gain).to(x.dtype), bias, stride=self.stride, padding=self.padding)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y


def image_pyramid(img: Float[Tensor, "B C H W"], *, levels: int) -> list[Tensor]:
    """The picture at full, half, quarter ... size (index 0 = full), each by area averaging of the last."""
    # Unstated: the filter of the real pyramid; area averaging is anti-aliased and needs no padding.
    pyramid = [img]
    for _ in range(levels - 1):
        pyramid.append(downsample(pyramid[-1]))
    return pyramid


def _scaled(x: Float[Tensor, "B I H W"], scale: Float[Tensor, "B I"]) -> Float[Tensor, "B I H W"]:
    return x * scale.to(x.dtype)[:, :, None, None]


class AdaptiveConv(nn.Module):
    """Convolution whose kernel is mixed from a bank by the style, then modulated and demodulated (Eq. 1-2).

        a = softmax(W_filter^T w + b_filter),  K = sum_n a_n K_n,  s = W_mod^T w + b_mod
        K'_oikl = s_i K_oikl,  K'' = K' / sqrt(sum_ikl K'^2 + eps),  y = x * K'' + b

    then to twice the side when `up`, and LeakyReLU when `activation`; the output is scaled by `out_gain`.
    Modulating the kernel equals scaling its input, demodulating equals scaling its output, and the norm of the
    mixed kernel is a quadratic form in a and s^2 over the bank's Gram matrix: no per-sample kernel is ever
    modulated, squared or summed. What is left has exactly equal forms:
      grouped   mix the bank into one kernel a sample, then one grouped convolution;
      bank      sum_n a_n K_n * x = [K_1 ... K_N] * [a_1 x ... a_N x]: one dense convolution for the whole batch;
      matmul    for small 1x1 kernels on large maps: build each sample's whole kernel, then one batched product.
    """

    # Unstated: the order of convolution and upsampling; convolving first is a quarter of the work.

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style_dim: int,
        kernel: int = 3,
        num_filters: int = 1,
        demodulate: bool = True,
        up: bool = False,
        activation: bool = False,
        out_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(num_filters, out_channels, in_channels, kernel, kernel))
        self.to_scale = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.to_select = EqualLinear(style_dim, num_filters) if num_filters > 1 else None
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = 1 / math.sqrt(in_channels * kernel**2)
        self.out_gain = out_gain * (ACTIVATION_GAIN if activation else 1.0)
        self.demodulate = demodulate
        self.up = up
        self.activation = activation

    def forward(self, x: Float[Tensor, "B I H W"], w: Float[Tensor, "B S"]) -> Float[Tensor, "B O H2 W2"]:
        w = w.to(torch.float32)
        scale = self.to_scale(w) * self.gain  # [B, I]
        select = None if self.to_select is None else self.to_select(w).softmax(dim=1)  # [B, N]
        if self._prefers_matmul(x):
            return self._matmul_form(x, scale, select)
        if select is None:
            y = F.conv2d(_scaled(x, scale), self.bank[0].to(x.dtype), padding=self.bank.shape[-1] // 2)
        elif self.training:  # with its batches, N dense products beat one grouped convolution a sample
            y = self._bank_form(x, scale, select)
        else:
            y = self._grouped_form(_scaled(x, scale), select)

        # Demodulation, bias and gain in one pass; upsampling and LeakyReLU commute with positive factors.
        bias = (self.bias * self.out_gain).to(y.dtype)[:, None, None]
        if self.demodulate:
            norm = (self._demodulation(scale, select) * self.out_gain).to(y.dtype)
            y = torch.addcmul(bias, y, norm[:, :, None, None])
        else:
            y = torch.add(bias, y, alpha=self.out_gain)
        if self.up:
            y = upsample(y)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y

    def _prefers_matmul(self, x: Tensor) -> bool:
        """Whether building kernels is less work than passing over the maps before and after one shared convolution.

        The passes touch H W (I + O) numbers, the kernels I O; the factor is where the two took the same time.
        """
        _, O, I, k, _ = self.bank.shape
        return k == 1 and not self.up and x.shape[2] * x.shape[3] * (I + O) > 10 * I * O

    def _matmul_form(self, x: Tensor, scale: Tensor, select: Tensor | None) -> Tensor:
        bank = self.bank.to(torch.float32).flatten(2)  # [N, O, I]
        kernel = bank if select is None else (select @ bank.flatten(1)).unflatten(1, bank.shape[1:])
        kernel = kernel * (scale * self.out_gain)[:, None]  # [B, O, I]
        if self.demodulate:
            norm = (kernel / self.out_gain).square().sum(dim=2, keepdim=True)
            kernel = kernel * (norm + DEMODULATION_EPS).rsqrt()
        tokens = x.flatten(2).transpose(1, 2)  # [B, HW, I]; a view when x is channels-last
        bias = (self.bias * self.out_gain).to(x.dtype)
        y = torch.baddbmm(bias, tokens, kernel.to(x.dtype).transpose(1, 2))
        y = F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    def _grouped_form(self, x: Tensor, select: Tensor) -> Tensor:
        B, _, H, W = x.shape
        kernel = (select.to(x.dtype) @ self.bank.flatten(1).to(x.dtype)).view(
            -1, *self.bank.shape[2:]
        )  # [B O, I, k, k]
        y = F.conv2d(x.reshape(1, -1, H, W), kernel, padding=kernel.shape[-1] // 2, groups=B)
        return y.view(B, -1, H, W)

    def _bank_form(self, x: Tensor, scale: Tensor, select: Tensor) -> Tensor:
        B, _, H, W = x.shape
        factors = (select[:, :, None] * scale[:, None]).to(x.dtype)  # [B, N, I]
        # A last axis of channels, so that the maps stay channels-last.
        wide = (x.permute(0, 2, 3, 1)[:, :, :, None] * factors[:, None, None]).view(B, H, W, -1).permute(0, 3, 1, 2)
        kernel = self.bank.to(x.dtype).transpose(0, 1).flatten(1, 2)  # [O, N I, k, k]
        return F.conv2d(wide, kernel, padding=kernel.shape[-1] // 2)

    def _demodulation(self, scale: Tensor, select: Tensor | None) -> Tensor:
        """1 / norm of each sample's mixed and modulated kernel, [B, O]."""
        bank = self.bank.to(torch.float32).flatten(3)  # [N, O, I, kk]
        if select is None:
            energy = scale.square() @ bank[0].square().sum(dim=2).t()
        else:
            N, O = bank.shape[:2]
            gram = torch.einsum("noik,moik->nmoi", bank, bank).flatten(0, 2)  # [N N O, I]
            pairs = (select[:, :, None] * select[:, None, :]).flatten(1)  # [B, N N]
            energy = ((scale.square() @ gram.t()).view(-1, N * N, O) * pairs[:, :, None]).sum(dim=1)
        return (energy + DEMODULATION_EPS).rsqrt()
