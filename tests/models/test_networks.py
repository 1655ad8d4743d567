"""The networks as wholes: shapes of paper 4.1, who reaches whom, and that a picture stands for itself."""

import pytest
import torch
from torch import Tensor

from gigagan import config
from gigagan.config import DiscriminatorConfig, GeneratorConfig
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.discriminator import Discriminator, Head, ProjectionHead, minibatch_std
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.generator import Generator
from gigagan.models.text import others

ATTENTION = config.AttentionConfig(resolutions=(8,), depths=(1,), head_dim=8, mlp_multiplier=1.0)
G_CONFIG = GeneratorConfig(
    resolution=64,
    z_dim=8,
    w_dim=16,
    mapping_layers=2,
    text_layers=1,
    text_dim=16,
    text_heads=2,
    channel_base=256,
    channel_max=16,
    blocks=(1, 2, 1, 1, 1),
    num_filters=(1, 2, 2, 1, 1),
    attention=ATTENTION,
)
D_CONFIG = DiscriminatorConfig(
    text_layers=1,
    text_dim=16,
    text_heads=2,
    channel_base=256,
    channel_max=16,
    blocks=(1, 1, 2, 1, 1),
    attention=ATTENTION,
)
PROMPTS = ["a red apple", "a flat icon of a small green house", "two cats"]


@pytest.fixture
def features() -> TextFeatures:
    return HashedText(max_tokens=12).encode(PROMPTS)


@pytest.fixture
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(G_CONFIG, feature_dim=HashedText.feature_dim)


@pytest.fixture
def D() -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(D_CONFIG, resolution=64, feature_dim=HashedText.feature_dim)


def pyramid_of(batch: int) -> list[Tensor]:
    return [torch.randn(batch, 3, 64 >> i, 64 >> i) for i in range(5)]


def test_pyramid_of_pictures(G: Generator, features: TextFeatures) -> None:
    pyramid = G(torch.randn(3, 8), features)
    assert [tuple(img.shape) for img in pyramid] == [(3, 3, r, r) for r in (64, 32, 16, 8, 4)]
    assert G.num_ws == 6


def test_pictures_have_no_noise_and_no_bound(G: Generator, features: TextFeatures) -> None:
    """toRGB is the last thing that happens to a picture, and the same point gives the same picture."""
    z = torch.randn(3, 8)
    with torch.no_grad():
        before, again = G(z, features), G(z, features)
        for name, parameter in G.named_parameters():
            if ".to_rgb." in name and name.endswith(("bank", "bias")) and "to_scale" not in name:
                parameter.mul_(10)
        after = G(z, features)
    for one, two, ten in zip(before, again, after, strict=True):
        assert torch.equal(one, two)
        assert ten.abs().max() > 1
        torch.testing.assert_close(ten, 10 * one, rtol=1e-4, atol=1e-4)


def test_the_mean_style_moves_by_a_two_hundredth(G: Generator) -> None:
    start, w = torch.randn(16), torch.randn(5, 16)
    G.mapping.w_avg.copy_(start)
    G.mapping.track(w)
    torch.testing.assert_close(G.mapping.w_avg, 0.995 * start + 0.005 * w.mean(dim=0))


def test_a_leaky_relu_follows_from_rgb(D: Discriminator) -> None:
    stage = next(iter(D.stages.values()))
    img = torch.randn(2, 3, 64, 64)
    with torch.no_grad():  # without a bias as yet
        up, down = stage.from_rgb(img), stage.from_rgb(-img)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(down, torch.where(up > 0, -0.2 * up, -up / 0.2), rtol=1e-4, atol=1e-5)
    assert (up > 0).any()
    assert (up < 0).any()


def test_fifteen_logits_with_the_sizes_of_the_paper(D: Discriminator, features: TextFeatures) -> None:
    logits = D(pyramid_of(3), features)
    sizes = {1: 32, 2: 16, 3: 8, 4: 4, 5: 1}
    assert [sorted(level) for level in logits] == [[1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5], [4, 5], [5]]
    assert sum(map(len, logits)) == 15
    for level in logits:
        for j, values in level.items():
            assert tuple(values.shape) == (3, 1, sizes[j], sizes[j])


def test_no_level_reaches_another_level(D: Discriminator, features: TextFeatures) -> None:
    pyramid = [img.requires_grad_() for img in pyramid_of(3)]
    logits = D(pyramid, features)
    for i, level in enumerate(logits):
        for values in level.values():
            gradients = torch.autograd.grad(values.sum(), pyramid, retain_graph=True, allow_unused=True)
            for k, gradient in enumerate(gradients):
                reached = gradient is not None and bool(gradient.abs().sum() > 0)
                assert reached == (k == i)


def test_gradients_of_one_rgb_stay_below_its_level(G: Generator, features: TextFeatures) -> None:
    """Levels accumulate upwards: the 8 px picture depends on toRGB of 4 and 8 px and on no later one."""
    pyramid = G(torch.randn(3, 8), features)
    weights = [p for name, p in G.named_parameters() if name.endswith("to_rgb.bank")]
    gradients = torch.autograd.grad(pyramid[3].sum(), weights, allow_unused=True)
    assert [g is not None for g in gradients] == [True, True, False, False, False]


def test_text_reaches_every_logit_and_the_unconditional_branch_ignores_it(
    D: Discriminator, features: TextFeatures
) -> None:
    pyramid = pyramid_of(3)
    rolled = TextFeatures(features.tokens.roll(1, 0), features.mask.roll(1, 0), features.global_index)
    for own, other in zip(D(pyramid, features), D(pyramid, rolled), strict=True):
        for j in own:
            assert not torch.allclose(own[j], other[j])
    head = next(iter(D.heads.values()))
    assert isinstance(head, Head)
    with torch.no_grad():
        for parameter in head.psi.parameters():
            parameter.zero_()
    x = torch.randn(3, 8, 4, 4)
    seen = head.look(x)
    torch.testing.assert_close(head(x, seen, torch.randn(3, 16)), head(x, seen, torch.randn(3, 16)))


def test_shuffling_words_at_fixed_style_changes_the_picture(G: Generator, features: TextFeatures) -> None:
    condition = G.text(features)
    w = G.mapping(torch.randn(3, 8), condition.t_global)
    ws = w[:, None].expand(-1, G.num_ws, -1)
    t_local, mask = (x[:, None].expand(-1, G.num_ws, *x.shape[1:]) for x in (condition.t_local, condition.mask))
    plain = G.synthesis(ws, t_local, mask)[0]
    shuffled = G.synthesis(ws, t_local.roll(1, 0), mask.roll(1, 0))[0]
    assert (plain - shuffled).abs().mean() > 1e-4


def test_a_picture_does_not_depend_on_its_batch(G: Generator, features: TextFeatures) -> None:
    z = torch.randn(3, 8)
    together = G(z, features)
    order = [2, 0, 1]
    shuffled = G(z[order], TextFeatures(features.tokens[order], features.mask[order], features.global_index[order]))
    alone = G(z[1:2], TextFeatures(features.tokens[1:2], features.mask[1:2], features.global_index[1:2]))
    for a, b, c in zip(together, shuffled, alone, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a[1:2], c, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(G: Generator, D: Discriminator, features: TextFeatures) -> None:
    logits = D(G(torch.randn(3, 8), features), features)
    torch.stack([v.square().mean() for level in logits for v in level.values()]).sum().backward()
    for network in (G, D):
        idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not idle


def test_levels_share_a_scale_at_initialization(G: Generator, features: TextFeatures) -> None:
    """No level begins dead or overwhelming (the paper's dying low-resolution layers)."""
    for img in G(torch.randn(3, 8), features):
        assert 0.05 < img.std() < 10


def test_text_leaves_out_just_the_global_token(features: TextFeatures, G: Generator) -> None:
    index = torch.tensor([0, 3, 11])
    rest = others(index, num_tokens=12)
    for b in range(3):
        assert rest[b].tolist() == [t for t in range(12) if t != index[b]]
    condition = G.text(features)
    assert condition.t_local.shape == (3, 11, 16)
    assert torch.equal(condition.mask.sum(dim=1), features.mask.sum(dim=1) - 1)


def test_bfloat16_is_close_to_float32(G: Generator, features: TextFeatures) -> None:
    z = torch.randn(3, 8)
    exact, rough = G(z, features)[0], G(z, features, dtype=torch.bfloat16)[0]
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().mean() < 0.05 * exact.std()


def test_selection_is_a_distribution_over_filters() -> None:
    layer = AdaptiveConv(4, 4, style_dim=3, num_filters=4)
    assert layer.to_select is not None
    select = layer.to_select(torch.randn(5, 3)).softmax(dim=1)
    torch.testing.assert_close(select.sum(dim=1), torch.ones(5))


def test_minibatch_std_is_the_spread_within_groups() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2, 2)
    value = minibatch_std(x, 4)
    for first in (0, 4):
        deviation = x[first : first + 4].double().std(dim=0, correction=0).mean()
        expected = deviation.float().expand(4, 1, 2, 2)
        torch.testing.assert_close(value[first : first + 4], expected, rtol=1e-4, atol=1e-5)
    assert minibatch_std(x[:6], 4).shape == (6, 1, 2, 2)  # groups of two then
    torch.testing.assert_close(minibatch_std(x[:1].expand(4, -1, -1, -1), 4), torch.full((4, 1, 2, 2), 1e-4))


def test_projection_head_is_the_class_direction() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, text_dim=5, num_layers=2)
    x, t = torch.randn(3, 6, 1, 1), torch.randn(3, 5)
    direction = head.mapping(t / t.square().mean(dim=1, keepdim=True).sqrt())
    expected = (x.flatten(1) * direction).sum(dim=1) / 6**0.5 + head.unconditional(x).flatten()
    torch.testing.assert_close(head(x, head.look(x), t).flatten(), expected)
    assert not torch.allclose(head(x, head.look(x), t), head(x, head.look(x), -t))


def test_one_level_gives_one_logit_a_picture() -> None:
    cfg = DiscriminatorConfig(
        multi_scale=False,
        minibatch_std=2,
        text_layers=0,
        text_dim=16,
        text_heads=2,
        channel_base=128,
        channel_max=16,
        blocks=(1, 1, 1),
        head_channel_max=16,
        attention=ATTENTION,
    )
    torch.manual_seed(0)
    D = Discriminator(cfg, resolution=16, feature_dim=HashedText.feature_dim)
    logits = D([torch.randn(4, 3, 16, 16)], HashedText(max_tokens=8).encode(["a", "b", "c", "d"]))
    assert [list(level) for level in logits] == [[1]]
    assert logits[0][1].shape == (4, 1, 1, 1)
    logits[0][1].square().sum().backward()
    assert all(p.grad is not None for p in D.parameters())
