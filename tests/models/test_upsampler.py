"""The upsampler: its pictures, who reaches whom and how far, and that it sees no more than a window at once."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.config import AttentionConfig, DiscriminatorConfig, UpsamplerConfig
from gigagan.models.attention import AttentionBlock, window_starts
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.layers import upsample
from gigagan.models.upsampler import (
    STRIDE,
    DecoderLevel,
    Upsampler,
    UpsamplerSynthesis,
    reach,
    with_level,
)

CONFIG = UpsamplerConfig(
    resolution=64,
    input_resolution=16,
    z_dim=8,
    w_dim=16,
    mapping_layers=2,
    text_layers=1,
    text_dim=16,
    text_heads=2,
    channel_base=512,
    channel_max=16,
    encoder_blocks=(2, 1, 1),
    blocks=(1, 1, 2, 1, 1, 1),
    num_filters=(1, 2, 1, 2, 1, 2),
    attention=AttentionConfig(resolutions=(4,), depths=(1,), head_dim=8, mlp_multiplier=1.0),
)
PROMPTS = ["a red apple", "a flat icon of a small green house", "two cats"]


@pytest.fixture
def features() -> TextFeatures:
    return HashedText(max_tokens=12).encode(PROMPTS)


def build(cfg: UpsamplerConfig = CONFIG) -> Upsampler:
    torch.manual_seed(0)
    return Upsampler(cfg, feature_dim=HashedText.feature_dim)


def given(batch: int, height: int = 16, width: int = 16, level: float = 0.1) -> Tensor:
    return with_level(torch.randn(batch, 3, height, width), torch.full((batch,), level))


def test_pyramid_above_the_input(features: TextFeatures) -> None:
    G = build()
    pyramid = G(torch.randn(3, 8), features, given(3))
    assert [tuple(img.shape) for img in pyramid] == [(3, 3, r, r) for r in (64, 32)]
    assert G.num_ws == 7
    assert CONFIG.resolutions == (2, 4, 8, 16, 32, 64)
    assert (CONFIG.factor, CONFIG.levels) == (4, 2)


def test_any_size_goes_in(features: TextFeatures) -> None:
    pyramid = build()(torch.randn(3, 8), features, given(3, 24, 40))
    assert [tuple(img.shape[2:]) for img in pyramid] == [(96, 160), (48, 80)]


def test_every_parameter_learns(features: TextFeatures) -> None:
    G = build()
    pyramid = G(torch.randn(3, 8), features, given(3))
    torch.stack([img.square().mean() for img in pyramid]).sum().backward()
    idle = [n for n, p in G.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_a_picture_does_not_depend_on_its_batch(features: TextFeatures) -> None:
    G, z, low = build(), torch.randn(3, 8), given(3)
    together = G(z, features, low)
    alone = G(z[1:2], TextFeatures(features.tokens[1:2], features.mask[1:2], features.global_index[1:2]), low[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-5)


def test_picture_words_style_and_level_all_matter(features: TextFeatures) -> None:
    G, z, low = build(), torch.randn(3, 8), given(3)
    condition = G.text(features)
    w = G.mapping(z, condition.t_global)
    ws = w[:, None].expand(-1, G.num_ws, -1)

    def draw(ws: Tensor = ws, t: Tensor = condition.t_local, low: Tensor = low) -> Tensor:
        picture: Tensor = G.synthesis(ws, t, condition.mask, low)[0]
        return picture

    plain = draw()
    others = {
        "style": draw(ws=ws.roll(1, 0)),
        "words": draw(t=condition.t_local.roll(1, 0)),
        "level": draw(low=with_level(low[:, :3], torch.zeros(3))),
        "picture": draw(low=low.roll(1, 0)),
    }
    for name, other in others.items():
        assert (plain - other).abs().mean() > 1e-5, name


def test_what_is_learned_is_added_to_the_enlarged_picture(features: TextFeatures) -> None:
    """Without toRGB the pyramid is the small picture through the FIR filter, so colors are right from the start."""
    G, low = build(), given(3)
    with torch.no_grad():
        for level in G.synthesis.levels.values():
            if getattr(level, "to_rgb", None) is not None:
                level.to_rgb.bank.zero_()
    pyramid = G(torch.randn(3, 8), features, low)
    torch.testing.assert_close(pyramid[1], upsample(low[:, :3]))
    torch.testing.assert_close(pyramid[0], upsample(upsample(low[:, :3])))
    fresh = build()(torch.randn(3, 8), features, low)
    assert (fresh[0] - pyramid[0]).std() < low[:, :3].std()


def test_many_blocks_keep_the_scale(features: TextFeatures) -> None:
    """Thirty-five blocks, as in the paper's upsampler, neither fade nor explode."""
    G = build(CONFIG.model_copy(update={"blocks": (5,) * 6, "channel_max": 32, "channel_base": 2048}))
    stds: dict[str, float] = {}
    for name, level in G.synthesis.levels.items():
        level.register_forward_hook(lambda _m, _i, out, name=name: stds.__setitem__(name, float(out.detach().std())))
    G(torch.randn(3, 8), features, given(3))
    assert len(stds) == 6
    assert all(0.2 < std < 5 for std in stds.values()), stds


def test_the_decoder_is_the_equation(features: TextFeatures) -> None:
    """One level in float64 from its parts: up, join, blocks, and toRGB on the sum."""
    G = build().double()
    level = G.synthesis.levels["16x16"]
    assert isinstance(level, DecoderLevel)
    assert level.join is not None
    x, encoded = torch.randn(1, 16, 8, 8).double(), torch.randn(1, 16, 16, 16).double()
    w = torch.randn(1, 16)
    g = CONFIG.residual_gain
    block = level.blocks[0]

    def conv(layer: torch.nn.Module, y: Tensor) -> Tensor:
        kernel = layer.kernel_of(w).double()  # type: ignore[operator]
        return F.conv2d(y, kernel, layer.bias * layer.out_gain, padding=kernel.shape[-1] // 2)  # type: ignore[operator]

    up = F.leaky_relu(F.interpolate(conv(block.conv0, x), scale_factor=2, mode="bilinear"), 0.2)
    gained = F.leaky_relu(conv(block.conv1, up), 0.2)
    skip = F.conv2d(x, block.skip.weight * block.skip.gain)
    path = gained + F.interpolate(skip, scale_factor=2, mode="bilinear")
    joined = path / math.sqrt(2) + F.conv2d(
        encoded, level.join.weight * level.join.gain, level.join.bias * level.join.out_gain
    )
    expected = joined
    assert block.skip_gain == pytest.approx(1 / math.sqrt(1 + g**2))
    actual = level(x, w[:, None].expand(-1, 2, -1), torch.zeros(1, 0, 16).double(), torch.zeros(1, 0).bool(), encoded)
    # The level has one block at this side and no attention.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_windows_start_every_half_and_end_with_the_axis() -> None:
    assert window_starts(8, 8) == [0]
    assert window_starts(9, 8) == [0, 1]
    assert window_starts(20, 8) == [0, 4, 8, 12]
    assert window_starts(21, 8) == [0, 4, 8, 12, 13]


def test_windowed_attention_is_the_blend_of_its_windows() -> None:
    """In float64, place by place: every window over it, weighted by a hat over the sum of the hats."""
    torch.manual_seed(0)
    block = AttentionBlock(
        8, head_dim=4, dim_multiplier=1, mlp_multiplier=1, residual_gain=1, style_dim=3, window=4
    ).double()
    tokens, style = torch.randn(1, 7, 4, 8).double(), torch.randn(1, 1, 8).double()
    actual = block._windowed(tokens, style)
    for y in range(7):
        total, weights = torch.zeros(4, 8).double(), 0.0
        for top in (0, 2, 3):
            if not top <= y < top + 4:
                continue
            weight = 1 - abs(y - top + 0.5 - 2) / 2
            window = tokens[:, top : top + 4].flatten(1, 2)
            attended = block.self_attention(window, torch.cat([window, style], dim=1)).unflatten(1, (4, 4))
            total, weights = total + weight * attended[0, y - top], weights + weight
        torch.testing.assert_close(actual[0, y], total / weights)


def test_up_to_the_training_size_there_are_no_windows() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, head_dim=4, dim_multiplier=1, mlp_multiplier=1, residual_gain=1, window=4)
    x = torch.randn(2, 8, 4, 4)
    within = block(x)
    block.window = 0
    torch.testing.assert_close(within, block(x))


def style_of(G: Upsampler, features: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
    condition = G.text(features.first(1))
    w = G.mapping(torch.randn(1, 8), condition.t_global)
    return w[:, None].expand(-1, G.num_ws, -1), condition.t_local, condition.mask


@torch.no_grad()
def test_nothing_is_seen_from_further_than_the_reach(features: TextFeatures) -> None:
    """Change one pixel of a long strip: maps and pictures change nearby, and beyond the reach not by a bit."""
    G = build().eval()
    args, width, place = style_of(G, features), 512, 256
    low = given(1, 16, width)
    changed = low.clone()
    changed[:, :3, :, place] += 3
    before, after = (G.synthesis.look(*args, one) for one in (low, changed))
    far = reach(CONFIG).look
    columns = (before - after).abs().amax(dim=(0, 1, 2)).nonzero().flatten()
    assert place - far <= int(columns.min()) < place < int(columns.max()) <= place + far
    assert int(columns.max()) - place > 2 * STRIDE  # it does reach over its neighbors

    x = before.clone()
    x[:, :, :, place] += 1
    pictures = [G.synthesis.draw(one, *args, low[:, :3])[0] for one in (before, x)]
    columns = (pictures[0] - pictures[1]).abs().amax(dim=(0, 1, 2)).nonzero().flatten() // CONFIG.factor
    far = reach(CONFIG).draw
    assert place - far <= int(columns.min()) < place < int(columns.max()) <= place + far


@torch.no_grad()
def test_a_part_with_its_reach_around_it_is_the_part_of_the_whole(features: TextFeatures) -> None:
    G = build().eval()
    synthesis = G.synthesis
    assert isinstance(synthesis, UpsamplerSynthesis)
    args, half = style_of(G, features), CONFIG.input_resolution // 2
    low = given(1, 24, 320)
    whole = synthesis.look(*args, low)
    halo = -(-reach(CONFIG).look // half) * half
    part = synthesis.look(*args, low[:, :, :, 160 - halo : 176 + halo])
    torch.testing.assert_close(part[..., halo : halo + 16], whole[..., 160:176], rtol=1e-4, atol=1e-5)


def test_a_smaller_scale_is_that_level(features: TextFeatures) -> None:
    G = build()
    args, low = style_of(G, features), given(1)
    x = G.synthesis.look(*args, low)
    every, first = (G.synthesis.draw(x, *args, low[:, :3], levels) for levels in (0, 1))
    assert len(first) == 1
    assert torch.equal(first[0], every[1])


def test_d_judges_the_levels_there_are_at_every_exit_after_them(features: TextFeatures) -> None:
    cfg = DiscriminatorConfig(
        text_layers=1, text_dim=16, text_heads=2, channel_base=256, channel_max=16, blocks=(1,) * 5, head_channel_max=8
    )
    cfg = cfg.model_copy(update={"attention": CONFIG.attention.model_copy(update={"resolutions": (8,)})})
    torch.manual_seed(0)
    D = Discriminator(cfg, resolution=64, feature_dim=HashedText.feature_dim, levels=2)
    pyramid = [torch.randn(3, 3, side, side, requires_grad=True) for side in (64, 32)]
    logits = D(pyramid, features)
    assert [sorted(level) for level in logits] == [[1, 2, 3, 4, 5], [2, 3, 4, 5]]
    assert [logits[0][j].shape[-1] for j in range(1, 6)] == [32, 16, 8, 4, 1]
    for i, level in enumerate(logits):
        reached = torch.autograd.grad(
            sum(v.sum() for v in level.values()), pyramid, allow_unused=True, retain_graph=True
        )
        assert [g is not None and bool(g.abs().sum() > 0) for g in reached] == [k == i for k in range(2)]
