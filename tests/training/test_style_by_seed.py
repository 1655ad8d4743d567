"""z that tells a style, and M's lesson to heed it: by its equation, on a tiny network, and under sabotage."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigagan import config
from gigagan.data.captions import TEMPLATES, styleless
from gigagan.data.features import CaptionFeatures
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.generator import Generator
from gigagan.training.style_by_seed import LATENTS_EACH, STYLES_EACH, Lesson, draw_lesson, style_distilled, telling

STYLES = len(TEMPLATES)
NOUNS = ["a rocket", "a red apple", "skis"]
FIRST = {t.format(X=noun): each[0].format(X=noun) for each in TEMPLATES.values() for t in each for noun in NOUNS}


class OneWording(HashedText):
    """Wordings that say the same are the same, as they nearly are to a real encoder."""

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        return super().encode([FIRST.get(prompt, prompt) for prompt in prompts])


TEXTS = CaptionFeatures(OneWording(max_tokens=16))


def part_told(z: torch.Tensor) -> torch.Tensor:
    return z[:, : z.shape[1] // STYLES * STYLES].unflatten(1, (STYLES, -1)).sum(dim=2).argmax(dim=1)


@given(styles=st.lists(st.integers(-1, STYLES - 1), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_z_tells_the_style_and_stays_what_it_is_otherwise(styles: list[int], seed: int) -> None:
    z = torch.randn(len(styles), 2 * STYLES + 3, generator=torch.Generator().manual_seed(seed))
    told, wanted = telling(z, torch.tensor(styles)), torch.tensor(styles)
    says = part_told(told)
    assert torch.equal(says[wanted >= 0], wanted[wanted >= 0])
    assert torch.equal(told[wanted < 0], z[wanted < 0])
    assert torch.equal(told[:, 2 * STYLES :], z[:, 2 * STYLES :])
    assert torch.equal(told.sort().values, z.sort().values), "numbers change places alone"


def test_latents_that_tell_are_normal_where_the_style_is_the_largest() -> None:
    z = torch.randn(40_000, 2 * STYLES, generator=torch.Generator().manual_seed(0))
    told = telling(z, torch.full((40_000,), 3))
    where = z[part_told(z) == 3]  # what N(0, I) is there
    torch.testing.assert_close(told.mean(dim=0), where.mean(dim=0), atol=0.04, rtol=0)
    torch.testing.assert_close(told.std(dim=0), where.std(dim=0), atol=0.04, rtol=0)


def lesson(nouns: list[str], seed: int, z_dim: int) -> Lesson:
    drawn = draw_lesson(nouns, TEXTS, z_dim, torch.Generator().manual_seed(seed))
    assert drawn is not None
    return drawn


@pytest.fixture
def G() -> Generator:
    return build()


@pytest.fixture
def teacher() -> Generator:
    return build(seed=1)


def build(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    cfg = config.load("tiny", ["generator.z_dim=36", "generator.mapping_lr_multiplier=1"]).generator
    return Generator(cfg, feature_dim=HashedText.feature_dim)


def test_a_lesson_pairs_each_noun_with_captions_that_name_what_z_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(CaptionFeatures, "__call__", lambda _, captions: seen.extend(captions))
    drawn = lesson(NOUNS, seed=0, z_dim=64)
    plain, named = seen[: len(NOUNS)], seen[len(NOUNS) :]
    told = part_told(drawn.z).unflatten(0, (len(NOUNS), STYLES_EACH, LATENTS_EACH))
    for n, noun in enumerate(NOUNS):
        assert plain[n] in styleless(noun)
        assert bool((told[n] == told[n][:, :1]).all()), "each latent of a pair tells the same"
        styles = told[n][:, 0].tolist()
        assert len(set(styles)) == STYLES_EACH
        for style, text in zip(styles, named[n * STYLES_EACH :], strict=False):
            assert text in [template.format(X=noun) for template in list(TEMPLATES.values())[style]]


def test_pictures_of_other_sets_are_passed_over() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_lesson(["", ""], TEXTS, 64, generator) is None
    assert len(lesson(["", "a rocket", ""], 0, 64).z) == STYLES_EACH * LATENTS_EACH


def test_the_loss_is_the_mean_square_between_the_two_w(G: Generator, teacher: Generator) -> None:
    drawn, exact = lesson(NOUNS, seed=1, z_dim=G.cfg.z_dim), 0.0
    features = drawn.features
    drawn = Lesson(TextFeatures(features.tokens.double(), features.mask, features.global_index), drawn.z.double())
    G, teacher = G.double(), teacher.double()
    with torch.no_grad():
        plain, named = (network.text(drawn.features).t_global for network in (G, teacher))
        for row, z in enumerate(drawn.z.split(1)):
            pair = row // LATENTS_EACH
            w = G.mapping(z, plain[pair // STYLES_EACH][None])
            wanted = teacher.mapping(z, named[len(NOUNS) + pair][None])
            exact += float((w - wanted).square().sum())
        found = style_distilled(G, teacher, drawn)
    assert float(found) == pytest.approx(exact / len(drawn.z) / G.cfg.w_dim, rel=1e-9)


def test_m_alone_learns(G: Generator, teacher: Generator) -> None:
    style_distilled(G, teacher, lesson(NOUNS, seed=1, z_dim=G.cfg.z_dim)).backward()
    learns = {name.split(".")[0] for name, p in G.named_parameters() if p.grad is not None}
    assert learns == {"mapping"}
    assert all(p.grad is None for p in teacher.parameters())


def rolled(drawn: Lesson) -> Lesson:
    """Sabotage: each pair with the latents of the next, which tell another style."""
    return Lesson(drawn.features, drawn.z.roll(LATENTS_EACH, 0))


def heeded(sabotage: Callable[[Lesson], Lesson] = lambda drawn: drawn) -> float:
    """The loss after lessons, over that under latents that tell other styles; 1 = w heeds z in nothing."""
    G, teacher = build(), build()
    optimizer = torch.optim.Adam(G.mapping.parameters(), lr=0.01)
    for step in range(300):
        optimizer.zero_grad()
        style_distilled(G, teacher, sabotage(lesson(NOUNS, seed=step, z_dim=G.cfg.z_dim))).backward()
        optimizer.step()
    fresh = [lesson(NOUNS, seed=10_000 + n, z_dim=G.cfg.z_dim) for n in range(8)]
    with torch.no_grad():
        own, others = (
            sum(float(style_distilled(G, teacher, f(one))) for one in fresh) for f in (lambda one: one, rolled)
        )
    return own / others


def test_m_learns_to_heed_z() -> None:
    assert heeded() < 0.7


def test_m_heeds_no_latents_that_tell_another_style() -> None:
    assert heeded(rolled) > 0.95
