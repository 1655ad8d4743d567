"""The sample-adaptive convolution (paper 3.2), in exactly equal forms that cost differently.

Axes: B batch, N filters in a bank, I and O channels in and out, H and W height and width, k kernel, S style,
P pairs of filters.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gigagan.models.layers import (
    ACTIVATION_GAIN,
    ACTIVATION_SLOPE,
    EqualLinear,
    folded,
    pack_conv,
    packable,
    packed_conv,
    upsample,
)

DEMODULATION_EPS = 1e-8  # StyleGAN2
UNFOLDED_SIDE = 16  # on a CPU a single sample's convolution is faster as one matrix product up to here
MATMUL_RATIO = 10  # work on the maps over work on the kernels at which the two took the same time


class AdaptiveConv(nn.Module):
    """Convolution whose kernel is mixed from a bank by the style, then modulated and demodulated (Eq. 1-2).

        a = softmax(W_filter^T w + b_filter),  K = sum_n a_n K_n,  s = W_mod^T w + b_mod
        K'_oikl = s_i K_oikl,  K'' = K' / sqrt(sum_ikl K'^2 + eps),  y = x * K'' + b

    then to twice the side when `up`, and LeakyReLU when `activation`; the output is scaled by `out_gain`.
    Modulating the kernel equals scaling its input, demodulating equals scaling its output, and the norm of the
    mixed kernel is a quadratic form in a and s^2 over the bank's Gram matrix: no per-sample kernel is ever
    modulated, squared or summed. What is left has exactly equal forms:
      shared    one filter: the same convolution for the whole batch;
      bank      sum_n a_n K_n * x = [K_1 ... K_N] * [a_1 x ... a_N x]: the same, N times as wide (training, export);
      sample    mix the bank into one kernel, a sample after the other (drawing on a CPU);
      grouped   mix the bank into all samples' kernels, then one grouped convolution (drawing elsewhere);
      matmul    for small 1x1 kernels on large maps: build each sample's whole kernel, then one batched product.
    The form depends on the layer, the device, the size of the map, and whether it trains or is exported; never on the
    batch.
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
        self.traceable = False
        """Whether to draw by forms that are one graph for batches and maps of any size: *shared* and *bank*."""
        self.fixed_gram: Tensor | None = None
        """The bank's Gram matrix, where `prepare` was called."""
        self.fixed_pairs: Tensor | None = None
        """Both filters of each of its entries."""
        self.packed: Tensor | None = None
        """The only filter in the layout of the CPU's convolutions, where `prepare` found one."""

    def forward(self, x: Float[Tensor, "B I H W"], w: Float[Tensor, "B S"]) -> Float[Tensor, "B O H2 W2"]:
        w = w.to(torch.float32)
        scale = self.to_scale(w) * self.gain  # [B, I]
        select = None if self.to_select is None else self.to_select(w).softmax(dim=1)  # [B, N]
        if not self.traceable and self._prefers_matmul(x):
            return self._matmul_form(x, scale, select)
        if select is None:
            y = self._shared_form(x, scale)
        elif self.training or self.traceable:
            y = self._bank_form(x, scale, select)
        elif x.device.type == "cpu":
            y = self._sample_form(x, scale, select)
        else:
            y = self._grouped_form(x, scale, select)

        # Demodulation, bias and gain in one pass; upsampling and LeakyReLU commute with positive factors.
        bias = folded(self.bias, self.out_gain, y.dtype)[:, None, None]
        if self.demodulate:
            norm = (self._demodulation(scale, select) * self.out_gain).to(y.dtype)
            y = torch.addcmul(bias, y, norm[:, :, None, None])
        else:
            y = torch.add(bias, y, alpha=self.out_gain)
        if self.up:
            y = upsample(y)
        return F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y

    @torch.no_grad()
    def prepare(self, dtype: torch.dtype, *, pack: bool = True) -> None:
        """Fix the weights for drawing in dtype: the bank as the convolutions read it, its Gram matrix once."""
        self.eval()
        self.fixed_gram = self._gram() if self.demodulate else None
        self.fixed_pairs = self._pairs()
        bank = self.bank.to(dtype).permute(0, 1, 3, 4, 2).contiguous()  # channels-last, within each filter
        self.bank = nn.Parameter(bank.permute(0, 1, 4, 2, 3), requires_grad=False)
        kernel = bank.shape[2]
        if pack and len(bank) == 1 and kernel > 1 and packable(bank):
            self.packed = pack_conv(self.bank[0])

    @torch.no_grad()
    def kernel_of(self, w: Float[Tensor, "1 S"]) -> Float[Tensor, "O I k k"]:
        """The one kernel of a style, K'' of Eq. 1-2 with every gain in it, float32."""
        w = w.to(torch.float32)
        scale = self.to_scale(w) * self.gain
        select = None if self.to_select is None else self.to_select(w).softmax(dim=1)
        bank = self.bank.to(torch.float32)
        kernel = bank[0] if select is None else self._mixed(bank, select[0])
        kernel = kernel * scale[0][:, None, None] * self.out_gain
        return kernel * self._demodulation(scale, select)[0][:, None, None, None] if self.demodulate else kernel

    def _prefers_matmul(self, x: Tensor) -> bool:
        """Whether building kernels is less work than passing over the maps before and after one shared convolution."""
        _, O, I, k, _ = self.bank.shape
        return k == 1 and not self.up and x.shape[2] * x.shape[3] * (I + O) > MATMUL_RATIO * I * O

    def _matmul_form(self, x: Tensor, scale: Tensor, select: Tensor | None) -> Tensor:
        bank = self.bank.to(torch.float32).flatten(2)  # [N, O, I]
        kernel = bank if select is None else (select @ bank.flatten(1)).unflatten(1, bank.shape[1:])
        kernel = kernel * (scale * self.out_gain)[:, None]  # [B, O, I]
        if self.demodulate:
            norm = (kernel / self.out_gain).square().sum(dim=2, keepdim=True)
            kernel = kernel * (norm + DEMODULATION_EPS).rsqrt()
        tokens = x.flatten(2).transpose(1, 2)  # [B, HW, I]; a view when x is channels-last
        bias = folded(self.bias, self.out_gain, x.dtype)
        y = torch.baddbmm(bias, tokens, kernel.to(x.dtype).transpose(1, 2))
        y = F.leaky_relu(y, ACTIVATION_SLOPE) if self.activation else y
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    def _shared_form(self, x: Tensor, scale: Tensor) -> Tensor:
        x = x * scale.to(x.dtype)[:, :, None, None]
        if self.packed is not None:
            return packed_conv(x, self.packed, None, kernel=self.bank.shape[-1])
        return F.conv2d(x, self.bank[0].to(x.dtype), padding=self.bank.shape[-1] // 2)

    def _bank_form(self, x: Tensor, scale: Tensor, select: Tensor) -> Tensor:
        B, _, H, W = x.shape
        factors = (select[:, :, None] * scale[:, None]).to(x.dtype)  # [B, N, I]
        # A last axis of channels, so that the maps stay channels-last.
        wide = (x.permute(0, 2, 3, 1)[:, :, :, None] * factors[:, None, None]).reshape(B, H, W, -1)
        kernel = self.bank.to(x.dtype).transpose(0, 1).flatten(1, 2)  # [O, N I, k, k]
        return F.conv2d(wide.permute(0, 3, 1, 2), kernel, padding=kernel.shape[-1] // 2)

    def _sample_form(self, x: Tensor, scale: Tensor, select: Tensor) -> Tensor:
        x, bank = x * scale.to(x.dtype)[:, :, None, None], self.bank.to(x.dtype)
        kernels = (self._mixed(bank, a) for a in select.to(x.dtype))
        unfolded = max(x.shape[2:]) <= UNFOLDED_SIDE and self.bank.shape[-1] > 1
        convolve = _unfolded_conv if unfolded else _plain_conv
        return torch.cat([convolve(one, kernel) for one, kernel in zip(x.split(1), kernels, strict=True)])

    @staticmethod
    def _mixed(bank: Tensor, a: Float[Tensor, " N"]) -> Float[Tensor, "O I k k"]:
        kernel = bank[0] * a[0]
        for filter_, share in zip(bank[1:], a[1:], strict=True):
            kernel = torch.addcmul(kernel, filter_, share)
        return kernel

    def _grouped_form(self, x: Tensor, scale: Tensor, select: Tensor) -> Tensor:
        B, _, H, W = x.shape
        x = x * scale.to(x.dtype)[:, :, None, None]
        kernel = (select.to(x.dtype) @ self.bank.to(x.dtype).flatten(1)).view(
            -1, *self.bank.shape[2:]
        )  # [B O, I, k, k]
        y = F.conv2d(x.reshape(1, -1, H, W), kernel, padding=kernel.shape[-1] // 2, groups=B)
        return y.view(B, -1, H, W)

    def _gram(self) -> Float[Tensor, "P O I"]:
        """sum_kl K_n K_m for each pair n <= m of filters, float32; those of two filters twice, as they occur twice."""
        bank = self.bank.to(torch.float32).flatten(3)  # [N, O, I, kk]
        pairs = torch.triu_indices(len(bank), len(bank)).T.tolist()
        products = [(bank[n] * bank[m]).sum(dim=2) * (1 if n == m else 2) for n, m in pairs]
        return torch.stack(products)

    def _pairs(self) -> Int[Tensor, "2 P"]:
        return torch.triu_indices(len(self.bank), len(self.bank), device=self.bank.device)

    def _demodulation(self, scale: Tensor, select: Tensor | None) -> Float[Tensor, "B O"]:
        """1 / norm of each sample's mixed and modulated kernel."""
        gram = self._gram() if self.fixed_gram is None else self.fixed_gram
        energy = (scale.square() @ gram.flatten(0, 1).T).unflatten(1, gram.shape[:2])  # [B, P, O]
        if select is not None:
            n, m = self._pairs() if self.fixed_pairs is None else self.fixed_pairs
            energy = energy * (select[:, n] * select[:, m])[:, :, None]
        return (energy.sum(dim=1) + DEMODULATION_EPS).rsqrt()


def _plain_conv(x: Float[Tensor, "1 I H W"], kernel: Float[Tensor, "O I k k"]) -> Float[Tensor, "1 O H W"]:
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


def _unfolded_conv(x: Float[Tensor, "1 I H W"], kernel: Float[Tensor, "O I k k"]) -> Float[Tensor, "1 O H W"]:
    """The same as a product of all windows and the kernel, both with channels last."""
    H, W, k = *x.shape[2:], kernel.shape[-1]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[k // 2] * 4))
    windows = torch.cat([padded[:, i : i + H, j : j + W] for i in range(k) for j in range(k)], dim=3)
    y = F.linear(windows, kernel.permute(0, 2, 3, 1).flatten(1))
    return y.permute(0, 3, 1, 2)
