"""What is made ready for drawing draws the same: prepared weights, baked styles."""

import pytest
import torch
from torch import Tensor

from gigagan import config
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.baked import baked
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.generator import Generator, SynthesisNetwork
from gigagan.models.inference import prepared

PROMPTS = ["a red apple", "two green pears on a table", "x"]


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    cfg = config.load("tiny", ["generator.num_filters=[3,2,1]", "generator.blocks=[1,2,1]"]).generator
    generator = Generator(cfg, feature_dim=HashedText.feature_dim).eval().requires_grad_(False)
    for module in generator.modules():
        if isinstance(module, AdaptiveConv):
            module.bias.normal_()
    return generator


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return HashedText(max_tokens=16).encode(PROMPTS)


def draw(G: Generator, features: TextFeatures, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    z = torch.randn(len(PROMPTS), G.cfg.z_dim, generator=torch.Generator().manual_seed(1))
    pyramid: list[Tensor] = G(z, features, dtype=dtype)
    return pyramid


def test_a_prepared_generator_draws_the_same(G: Generator, features: TextFeatures) -> None:
    before = {name: value.clone() for name, value in G.state_dict().items()}
    for pack in (True, False):
        for a, b in zip(draw(prepared(G, torch.float32, pack=pack), features), draw(G, features), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())


def test_bfloat16_is_near(G: Generator, features: TextFeatures) -> None:
    exact = draw(G, features)[0]
    rough = draw(prepared(G, torch.bfloat16), features, torch.bfloat16)[0]
    assert (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("which", range(len(PROMPTS)))
def test_a_baked_style_draws_the_same(G: Generator, features: TextFeatures, which: int) -> None:
    condition = G.text(features)
    z = torch.randn(len(PROMPTS), G.cfg.z_dim, generator=torch.Generator().manual_seed(1))
    w = G.mapping(z, condition.t_global)
    parts = (w, condition.t_local, condition.mask)
    ws, t_local, mask = (x[:, None].expand(-1, G.num_ws, *x.shape[1:]) for x in parts)
    one = slice(which, which + 1)

    def run(synthesis: SynthesisNetwork) -> None:
        synthesis(ws[one], t_local[one], mask[one])

    fixed = baked(G.synthesis, run, torch.float32)
    assert not any(isinstance(module, AdaptiveConv) for module in fixed.modules())
    # Called with the styles and words of all prompts, it still draws its own.
    for level, expected in zip(fixed(ws, t_local, mask), draw(G, features), strict=True):
        for other in range(len(PROMPTS)):
            torch.testing.assert_close(level[other], expected[which], rtol=1e-3, atol=1e-4)
