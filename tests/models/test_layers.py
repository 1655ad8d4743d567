"""Each layer against a one-sample-at-a-time float64 reference written from its equation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.layers import EqualConv, EqualLinear, downsample, to_float, to_uint8, upsample


def reference(layer: AdaptiveConv, x: Tensor, w: Tensor) -> Tensor:
    """Eq. 1-2, a sample at a time, with nothing batched, fused or reordered."""
    out = []
    for xi, wi in zip(x, w, strict=True):
        bank = layer.bank / math.sqrt(layer.bank[0, 0].numel())
        if layer.to_select is None:
            kernel = bank[0]
        else:
            a = torch.softmax(affine(layer.to_select, wi), dim=0)
            kernel = torch.stack([a[n] * bank[n] for n in range(len(bank))]).sum(dim=0)
        kernel = kernel * affine(layer.to_scale, wi)[None, :, None, None]
        if layer.demodulate:
            kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        y = F.conv2d(xi[None], kernel, padding="same")[0] + layer.bias[:, None, None]
        if layer.up:
            y = zero_insertion_upsample(y)
        if layer.activation:
            y = torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)
        out.append(y)
    return torch.stack(out)


def affine(layer: EqualLinear, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return layer.weight @ x / math.sqrt(layer.weight.shape[1]) + layer.bias


def zero_insertion_upsample(x: Tensor) -> Tensor:
    """Insert zeros, filter with [1, 3, 3, 1] / 4 along each axis; edges replicated beforehand."""
    C, H, W = x.shape
    padded = F.pad(x[None], (1, 1, 1, 1), mode="replicate")[0]
    wide = torch.zeros(C, 2 * (H + 2), 2 * (W + 2), dtype=x.dtype)
    wide[:, ::2, ::2] = padded
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
    kernel = torch.outer(taps, taps).expand(C, 1, 4, 4)
    filtered = F.conv2d(wide[None], kernel, groups=C)[0]  # position p covers wide[p : p + 4]
    return filtered[:, : 2 * H, : 2 * W]


@pytest.mark.parametrize("num_filters", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_adaptive_conv_is_equation_1_and_2(
    num_filters: int, kernel: int, demodulate: bool, up: bool, training: bool
) -> None:
    torch.manual_seed(0)
    layer = AdaptiveConv(
        5, 4, style_dim=6, kernel=kernel, num_filters=num_filters, demodulate=demodulate, up=up, activation=True
    ).double()
    with torch.no_grad():
        layer.bias.normal_()
    x, w = torch.randn(3, 5, 6, 6).double(), torch.randn(3, 6).double()
    y = layer.train(training)(x, w)  # the two modes take different forms
    # Style arithmetic and demodulation stay float32 by design.
    torch.testing.assert_close(y, reference(layer, x, w), rtol=2e-6, atol=2e-6)


def test_forms_agree_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    layer = AdaptiveConv(6, 4, style_dim=5, num_filters=3)
    x, scale = torch.randn(2, 6, 5, 5, requires_grad=True), torch.randn(2, 6)
    select, g = torch.rand(2, 3).softmax(dim=1), torch.randn(2, 4, 5, 5)
    bank = layer._bank_form(x, scale, select)
    expected = torch.autograd.grad(bank, (x, layer.bank), g)
    for form in (layer._grouped_form, layer._sample_form):
        y = form(x, scale, select)
        torch.testing.assert_close(y, bank, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(y, (x, layer.bank), g), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [8, 20])  # one matrix product a sample, and a convolution
@pytest.mark.parametrize("num_filters", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_prepared_layers_are_the_same(side: int, num_filters: int, kernel: int) -> None:
    torch.manual_seed(0)
    options = {"kernel": kernel, "num_filters": num_filters, "up": kernel == 3, "activation": True, "out_gain": 0.4}
    layer = AdaptiveConv(8, 6, style_dim=5, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.bias.normal_()
    x, w = torch.randn(3, 8, side, side).contiguous(memory_format=torch.channels_last), torch.randn(3, 5)
    with torch.no_grad():
        before = layer(x, w)
        layer.prepare(torch.float32)
        torch.testing.assert_close(layer(x, w), before, rtol=1e-4, atol=1e-5)
        assert layer(x, w).is_contiguous(memory_format=torch.channels_last)
        for plain, img in (
            (EqualLinear(8, 4, lr_multiplier=0.1, bias_init=2.0, activation=True), x.movedim(1, -1)),
            (EqualConv(8, 4, kernel=3, activation=True, out_gain=0.3), x),
        ):
            before = plain(img)
            plain.prepare(torch.float32)
            torch.testing.assert_close(plain(img), before, rtol=1e-5, atol=1e-5)


def test_training_keeps_channels_last() -> None:
    """A map of another layout costs each later pass over it many times as much."""
    x, w = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last), torch.randn(2, 5)
    for num_filters in (1, 3):
        y = AdaptiveConv(8, 6, style_dim=5, num_filters=num_filters, up=True, activation=True)(x, w)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_one_filter_is_plain_modulated_convolution() -> None:
    torch.manual_seed(0)
    one = AdaptiveConv(4, 4, style_dim=3)
    many = AdaptiveConv(4, 4, style_dim=3, num_filters=5)
    with torch.no_grad():
        many.bank.copy_(one.bank.expand_as(many.bank))
        many.to_scale.load_state_dict(one.to_scale.state_dict())
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 3)
    torch.testing.assert_close(one(x, w), many(x, w), rtol=1e-4, atol=1e-5)


def test_demodulated_output_has_unit_variance() -> None:
    torch.manual_seed(0)
    layer = AdaptiveConv(64, 64, style_dim=16, num_filters=4)
    y = layer(torch.randn(4, 64, 16, 16), torch.randn(4, 16))
    assert 0.9 < y[:, :, 1:-1, 1:-1].std() < 1.1


def test_equal_linear_and_conv() -> None:
    torch.manual_seed(0)
    linear = EqualLinear(7, 5, lr_multiplier=0.01, bias_init=0.5, activation=True).double()
    x = torch.randn(3, 7).double()
    y = x @ linear.weight.T * 0.01 / math.sqrt(7) + 0.5
    torch.testing.assert_close(linear(x), torch.where(y > 0, y, 0.2 * y) * math.sqrt(2))
    conv = EqualConv(3, 5, kernel=3, down=True, activation=True, out_gain=0.7).double()
    img = torch.randn(2, 3, 8, 8).double()
    y = F.conv2d(img, conv.weight / math.sqrt(27), padding=1)[:, :, ::2, ::2]
    torch.testing.assert_close(conv(img), torch.where(y > 0, y, 0.2 * y) * math.sqrt(2) * 0.7)


def test_upsample_is_the_fir_filter_and_downsample_the_mean() -> None:
    x = torch.randn(2, 3, 4, 4).double()
    torch.testing.assert_close(upsample(x), torch.stack([zero_insertion_upsample(one) for one in x]))
    torch.testing.assert_close(downsample(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())


def test_pixels_round_trip() -> None:
    img = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(img)), img)
    assert to_uint8(torch.tensor([[[[-9.0, 9.0]]]])).flatten().tolist() == [0, 255]
