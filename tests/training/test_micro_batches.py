"""What a half step is given beside pictures and captions: z that tells a style, a lesson for M."""

import torch

from gigagan import config
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.models.frozen import HashedText
from gigagan.training.micro_batches import MicroBatch, micro_batches
from gigagan.training.state import TrainState
from gigagan.training.style_by_seed import telling

TEXTS = ["a rocket", "a flat icon of a rocket"]
HAS, SAYS = torch.tensor([5, 1]), torch.tensor([False, True])


def half_step(*overrides: str, phase: int = 1) -> MicroBatch:
    """What a half step, G's by default, is given of two pictures, one under a caption without a style."""
    cfg = config.load("tiny", ["train.batch=2", "train.batch_gpu=2", "discriminator.minibatch_std=0", *overrides])
    torch.manual_seed(0)
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"))
    batch = Batch(
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TEXTS, ["", ""], styles=HAS, styled=SAYS, nouns=["a rocket"] * 2
    )
    return next(micro_batches(state, batch, CaptionFeatures(HashedText(max_tokens=16)), 2, phase=phase))


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


def test_the_lesson_is_for_g_and_only_if_asked() -> None:
    asked = "data.style_by_seed=true", "loss.style_distill_weight=1"
    assert half_step(asked[0]).lesson is None
    assert half_step(*asked, phase=0).lesson is None
    with_it, without = half_step(*asked), half_step(asked[0])
    assert with_it.lesson is not None
    assert torch.equal(with_it.z, without.z), "what else is drawn stays as it is"
    assert torch.equal(with_it.other, without.other)
