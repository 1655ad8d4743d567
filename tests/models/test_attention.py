"""L2 attention against its formula, a query at a time in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gigagan.models.attention import AttentionBlock, L2Attention, head_count, l2_attention


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                logits = -(q[b, h, i] - k[b, h]).square().sum(dim=1) / math.sqrt(q.shape[-1])
                if mask is not None:
                    logits = logits.masked_fill(~mask[b], -math.inf)
                out[b, h, i] = logits.softmax(dim=0) @ v[b, h]
    return out


@pytest.mark.parametrize("masked", [True, False])
def test_logits_are_negative_squared_distances(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8).double() for n in (5, 7, 7))
    mask = torch.rand(2, 7) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    torch.testing.assert_close(l2_attention(q, k, v, mask), reference(q, k, v, mask), rtol=1e-6, atol=1e-6)


def test_bfloat16_keeps_the_key_norm() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 64) for _ in range(3))
    exact = l2_attention(q, k, v)
    rough = l2_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.01


def test_masked_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    layer = L2Attention(8, 6, inner_dim=8, num_heads=2, tied=False)
    x, context = torch.randn(2, 4, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    other = context.clone()
    other[:, 3:] = 100 * torch.randn(2, 2, 6)
    torch.testing.assert_close(layer(x, context, mask), layer(x, other, mask))
    torch.testing.assert_close(layer(x, context, mask), layer(x, context[:, :3]))


def test_tied_keys_put_each_token_on_itself() -> None:
    """Distance 0 to itself is the largest logit, so far-apart tokens return their own value."""
    layer = L2Attention(8, 8, inner_dim=8, num_heads=1, tied=True)
    x = 100 * torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x, x), layer.to_out(layer.to_v(x)), rtol=1e-4, atol=1e-3)
    assert layer.to_k is None


def test_second_derivative_exists() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, head_dim=4, dim_multiplier=1.0, mlp_multiplier=2.0, residual_gain=0.3).double()
    x = torch.randn(1, 8, 2, 2).double().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: block(x).square().sum(), (x,), atol=1e-3, rtol=1e-2, eps=1e-3)


def test_style_token_and_words_reach_the_features() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(
        8, head_dim=4, dim_multiplier=1.0, mlp_multiplier=2.0, residual_gain=0.3, style_dim=5, text_dim=6
    )
    x, w, t_local, mask = torch.randn(1, 8, 4, 4), torch.randn(1, 5), torch.randn(1, 3, 6), torch.ones(1, 3).bool()
    plain = block(x, w, t_local, mask)
    assert not torch.allclose(plain, block(x, w + 1, t_local, mask))
    assert not torch.allclose(plain, block(x, w, t_local + 1, mask))


def test_head_count_divides() -> None:
    assert [head_count(c, 64) for c in (256, 192, 100, 32)] == [4, 3, 1, 1]
