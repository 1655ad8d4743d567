"""What a half step is given beside pictures and captions: z that tells a style, captions of every rank."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from gigagan import config, dist
from gigagan.data.captions import TEMPLATES
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.errors import ConfigError
from gigagan.models.frozen import HashedText
from gigagan.training.micro_batches import MicroBatch, check_parts, micro_batches, other_captions, telling
from gigagan.training.state import TrainState
from tests import ranks

STYLES = len(TEMPLATES)


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


TEXTS = ["a rocket", "a flat icon of a rocket"]
HAS, SAYS = torch.tensor([5, 1]), torch.tensor([False, True])


def half_step(*overrides: str) -> MicroBatch:
    """What G's half of a step is given of two pictures, one under a caption without a style."""
    cfg = config.load("tiny", ["train.batch=2", "train.batch_gpu=2", "discriminator.minibatch_std=0", *overrides])
    torch.manual_seed(0)
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"))
    batch = Batch(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TEXTS, ["", ""], styles=HAS, styled=SAYS)
    return next(micro_batches(state, batch, CaptionFeatures(HashedText(max_tokens=16)), 2, phase=1))


def test_parts_too_small_for_what_is_found_in_them_are_one_line() -> None:
    def told(world: int, *overrides: str) -> str:
        cfg = config.load("tiny", ["train.batch=12", "train.batch_gpu=12", "discriminator.minibatch_std=0", *overrides])
        try:
            check_parts(cfg, world)
        except ConfigError as error:
            return str(error)
        return ""

    assert told(1) == told(6) == ""
    assert "over 12 processes by train.batch_gpu (12) makes parts of one picture" in told(12)
    assert told(12, "loss.match_weight_D=0", "loss.match_weight_G=0") == ""
    assert told(3, "discriminator.minibatch_std=4") == ""
    assert "parts of 6; expected multiples of discriminator.minibatch_std (4)" in told(
        2, "discriminator.minibatch_std=4"
    )
    assert "parts of one picture" in told(4, "train.batch_gpu=2")


def test_seeds_choose_styles_only_if_asked() -> None:
    plain, told = half_step(), half_step("data.style_by_seed=true")
    assert torch.equal(told.z, telling(plain.z, torch.tensor([5, -1])))
    assert not torch.equal(told.z, plain.z)


def test_a_style_is_asked_of_g_only_where_caption_or_seed_says_it() -> None:
    plain, told = half_step(), half_step("data.style_by_seed=true")
    assert plain.styles is not None
    assert told.styles is not None
    assert plain.styles.tolist() == [-1, 1]
    assert told.styles.tolist() == [5, 1]


SHARES = [["a cat", "a dog", "a cat"], ["a dog", "a fox", "a cat", "an owl", "an elk"]]


class Named:
    """A contrastive pair whose vector of a caption is its letters."""

    def text(self, captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[float(ord(letter)) for letter in caption.ljust(8)] for caption in captions])


def others_of(shares: Sequence[Sequence[str]], clip: float = 1.0) -> list[list[float]] | None:
    state: Any = SimpleNamespace(contrast=Named(), weights=SimpleNamespace(clip=clip), device=torch.device("cpu"))
    others = other_captions(state, list(shares[dist.rank()]))
    return None if others is None else others.tolist()


def test_pictures_are_told_from_the_captions_of_every_rank() -> None:
    """Each once, in the same order everywhere, however many a rank has: what one process has of the whole batch."""
    whole = others_of([SHARES[0] + SHARES[1]])
    assert whole == Named().text(["a cat", "a dog", "a fox", "an owl", "an elk"]).tolist()
    assert ranks.run(2, others_of, SHARES) == [whole] * 2
    assert others_of(SHARES, clip=0.0) is None
