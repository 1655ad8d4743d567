"""Whole half steps against the equations in float64, and that the comparison sees what it is there for."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gigagan import config, losses
from gigagan.models.frozen import HashedText, ImageFeatures, TextFeatures
from gigagan.models.layers import image_pyramid, to_float
from gigagan.training import steps, vision
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch
from tests.training import reference

CAPTIONS = ("one red", "two green", "three blue", "four gray")
SHARE = 0.375
# No weight is 0, 1 or another's.
WEIGHTS = (
    *("loss.level_weights=[0.5,0.3,0.2]", "loss.intermediate_adv_weight=0.45", "loss.intermediate_match_weight=0.7"),
    *("loss.adv_weight=0.9", "loss.match_weight_D=1.3", "loss.match_weight_G=0.6"),
    *("loss.r1_gamma=0.8", "loss.r1_interval=5", "loss.r1_share=0.75"),
    *("loss.vision_weight=1.1", "loss.clip_weight=0.35", "loss.perceptual_weight=0.55", "loss.paired_l1_weight=0.4"),
    *("vision.text_dim=8", "vision.channels=4", "discriminator.channel_max=8", "generator.channel_max=8"),
    *("discriminator.attention.head_dim=4", "generator.attention.head_dim=4", "augment.prob=0.5"),
)


class Eye(nn.Module):
    """A frozen image network of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.map_channels, self.judged_maps = [6, 5], {0: True, 1: False}
        self.fine, self.coarse = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 5, 3, stride=2)
        self.requires_grad_(False)

    def forward(self, img: Tensor, *, min_res: int = 0) -> ImageFeatures:
        fine = torch.tanh(self.fine(img))
        coarse = torch.tanh(self.coarse(fine))
        return ImageFeatures([fine, coarse], coarse.mean(dim=(2, 3)))


class Space:
    """A frozen contrastive pair, with captions to borrow."""

    scale = 7.0

    def __init__(self) -> None:
        self.others = self.text(["borrowed", "borrowed too"])

    def picture(self, seen: ImageFeatures) -> Tensor:
        return F.normalize(seen.pooled, dim=1)

    def text(self, captions: list[str]) -> Tensor:
        return F.normalize(HashedText(max_tokens=16).encode(captions).tokens[:, 1, :5].double(), dim=1)


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks keep float32 in places, by name: here that name is float64's."""
    before = torch.get_default_dtype()
    monkeypatch.setattr(torch, "float32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def build(override: str, gaps: bool) -> tuple[TrainState, MicroBatch]:
    """Networks without a weight at a special value, and four pictures; with gaps one has no caption but its own."""
    torch.manual_seed(0)
    cfg = config.load("tiny", ["train.batch=4", "train.batch_gpu=4", *WEIGHTS, override])
    state = TrainState(
        cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"), image_network=Eye(), contrast=Space()
    )
    assert state.V is not None
    for network in (state.G, state.D, state.V):
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    batch = micro_batch(cfg, CAPTIONS, others=Space().text(list(CAPTIONS)))
    features = TextFeatures(batch.features.tokens.double(), batch.features.mask, batch.features.global_index)
    has_other = torch.tensor([True, not gaps, True, True])
    return state, dataclasses.replace(batch, features=features, has_other=has_other)


def named(state: TrainState, *letters: str) -> dict[str, nn.Parameter]:
    networks = {letter: getattr(state, letter) for letter in letters}
    return {f"{letter}.{name}": p for letter, network in networks.items() for name, p in network.named_parameters()}


@functools.cache
def expected(override: str, gaps: bool) -> dict[str, Tensor]:
    """Losses by the names of the statistics, and gradients by the names of the weights."""
    state, batch = build(override, gaps)
    found: dict[str, Tensor] = {}
    for letters in ("DV", "G"):
        weights = named(state, *letters)
        for parameter in weights.values():
            parameter.requires_grad_()
        values = (
            reference.discriminator_losses(state, batch, share=SHARE)
            if "D" in letters
            else reference.generator_losses(state, batch, share=SHARE)
        )
        gradients = torch.autograd.grad(values.pop("total"), list(weights.values()))
        found |= {name: value.detach() for name, value in values.items()}
        found |= dict(zip(weights, gradients, strict=True))
    return found


def left(override: str, gaps: bool) -> dict[str, Tensor]:
    """The same, as the two half steps report and leave it."""
    state, batch = build(override, gaps)
    assert state.V is not None
    with updating(state.D, state.opt_D), updating(state.V, state.opt_V):
        stats = steps.discriminator_step(state, batch, share=SHARE, r1=True)
    with updating(state.G, state.opt_G):
        stats |= steps.generator_step(state, batch, share=SHARE)
    weights = named(state, "D", "V", "G")
    return stats | {name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in weights.items()}


def differing(override: str, gaps: bool) -> set[str]:
    """Networks of which a weight's gradient or a loss isn't the reference's, to 1e-9 of its largest number."""
    ours, theirs = left(override, gaps), expected(override, gaps)
    equal = {name for name, value in theirs.items() if (ours[name] - value).abs().max() <= 1e-9 * value.abs().max()}
    return {name.removeprefix("Loss/")[0] for name in theirs.keys() - equal}


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(
    "override", ["loss.match_G=raise", "loss.match_G=lower", "loss.match_weight_G=0", "loss.match_generated=false"]
)
def test_a_step_is_the_equations(override: str, gaps: bool) -> None:
    """Every loss, and the gradient of every weight of D, V and G."""
    assert differing(override, gaps) == set()
    if override == "loss.match_weight_G=0":
        assert "Loss/G/match" not in left(override, gaps)


def sabotage(monkeypatch: pytest.MonkeyPatch, function: Callable[..., object], old: str, new: str) -> None:
    """Put a function in its own place with `new` for `old` in its source."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{function.__name__}: {source.count(old)} times {old!r}"
    made: dict[str, object] = {}
    exec(source.replace(old, new), vars(sys.modules[function.__module__]), made)
    for module in (steps, vision, losses):
        if hasattr(module, function.__name__):
            monkeypatch.setattr(module, function.__name__, made[function.__name__])


T_D, T_V = "state.D.text(batch.features).t_global", "V.text(batch.features).t_global"
LEVELS = "logits, loss, level_weights=cfg.level_weights"
R1_LEVELS = "logits, leaves, level_weights=loss.level_weights"
ADV, MATCH = "loss.intermediate_adv_weight", "loss.intermediate_match_weight"
SABOTAGES = {
    "captions swapped in D": (steps._judges, "t_D[batch.other]", "t_D", "D"),
    "own captions swapped in D": (steps._judges, "(exits, t_D.repeat(2, 1)", "(exits, t_D.flip(0).repeat(2, 1)", "D"),
    "captions swapped in V": (vision.vision_judges, "t[batch.other]", "t", "V"),
    "captions swapped in G": (steps._adversarial, "t_D[batch.other]", "t_D", "G"),
    "matching negated in D": (steps._judges, "weights.match_D * match", "-weights.match_D * match", "D"),
    "matching negated in V": (vision.vision_judges, "weight * match", "-weight * match", "V"),
    "matching negated in G": (
        steps._adversarial,
        "weights.adv * weights.match_G",
        "-weights.adv * weights.match_G",
        "G",
    ),
    "text frozen in D": (steps._judges, T_D, f"{T_D}.detach()", "D"),
    "text frozen in V": (vision.vision_judges, T_V, f"{T_V}.detach()", "V"),
    "level 0 dropped": (steps._sum, LEVELS, "logits[1:], loss, level_weights=cfg.level_weights[1:]", "DG"),
    "level 1 dropped": (steps._sum, LEVELS, "logits[::2], loss, level_weights=cfg.level_weights[::2]", "DG"),
    "level 2 dropped": (steps._sum, LEVELS, "logits[:2], loss, level_weights=cfg.level_weights[:2]", "DG"),
    "levels reversed": (steps._sum, LEVELS, "logits, loss, level_weights=cfg.level_weights[::-1]", "DG"),
    "exits of matching weighted otherwise in D": (steps._judges, MATCH, ADV, "D"),
    "exits of matching weighted otherwise in G": (steps._adversarial, MATCH, ADV, "G"),
    "exits not weighted": (losses.multi_scale, "1.0 if j == last else intermediate_weight", "1.0", "DG"),
    "R1 without weight": (steps.discriminator_step, "weights.r1_gamma / 2", "0.0", "D"),
    "R1 without its half": (steps.discriminator_step, "weights.r1_gamma / 2", "weights.r1_gamma", "D"),
    "R1 without the interval": (steps.discriminator_step, " * loss.r1_interval", "", "D"),
    "R1 without the share of the batch": (
        steps.discriminator_step,
        "loss.r1_interval * share",
        "loss.r1_interval",
        "D",
    ),
    "R1 of all pictures": (steps.discriminator_step, "max(round(B * loss.r1_share), 1)", "B", "D"),
    "R1 drops a level": (steps._r1, R1_LEVELS, "logits[1:], leaves[1:], level_weights=loss.level_weights[1:]", "D"),
    "R1 weighs exits otherwise": (steps._r1, ADV, MATCH, "D"),
    "D without the share of the batch": (steps.discriminator_step, "(total * share)", "total", "D"),
    "V without the share of the batch": (steps.discriminator_step, "(judged * share)", "judged", "V"),
    "G without the share of the batch": (steps.generator_step, "(total * share)", "total", "G"),
    "V's sign in G": (vision.vision_judged, "losses.loss_real", "losses.loss_generated", "G"),
    "D's sign in G": (steps._adversarial, "t_D), losses.loss_real", "t_D), losses.loss_generated", "G"),
    "captions of the batch left out": (
        vision._clip_contrastive,
        "[batch.others, contrast.others]",
        "[contrast.others]",
        "G",
    ),
}


@pytest.mark.parametrize(("function", "old", "new", "networks"), SABOTAGES.values(), ids=SABOTAGES)
def test_sabotage_is_seen(
    function: Callable[..., object], old: str, new: str, networks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong word in a step, and the comparison above fails for the networks it concerns."""
    sabotage(monkeypatch, function, old, new)
    assert differing("loss.match_G=raise", False) == set(networks)


@pytest.mark.parametrize(
    ("function", "switch", "network"),
    [
        (steps._judges, " if loss.match_generated else of_real", "D"),
        (vision.vision_judges, " if state.cfg.loss.match_generated else of_real", "V"),
    ],
)
def test_mismatched_generated_pictures_not_asked_for_are_seen(
    function: Callable[..., object], switch: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, function, switch, "")
    assert differing("loss.match_generated=false", False) == {network}


def test_pictures_without_another_caption_that_count_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, losses.mean_where, "valid.to(values.dtype)", "torch.ones_like(values)")
    assert differing("loss.match_G=raise", True) == {"D", "V", "G"}


class R1(nn.Module):
    """The penalty of some pictures, as a function of D's weights."""

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        self.state, self.D = state, state.D

    def forward(self, pyramid: list[Tensor], features: TextFeatures) -> Tensor:
        return steps._r1(self.state, pyramid, features, len(pyramid[0]))


def part(name: str) -> str:
    """`D.stages.8x8.attention` of the names below it."""
    return ".".join(name.split(".")[:4])


def test_the_gradient_of_r1_is_its_differences() -> None:
    """Of each part of D along a random line of its weights: convolution, attention, text and heads, twice backward."""
    state, batch = build("loss.match_G=raise", False)
    pyramid = image_pyramid(to_float(batch.img[:2]), levels=state.D.num_levels)
    weights = {name: p.detach() for name, p in R1(state).named_parameters()}
    lines = {name: torch.randn_like(value) for name, value in weights.items()}
    parts = sorted({part(name) for name in weights})
    assert len(parts) > 12

    def penalty(lengths: Tensor) -> Tensor:
        moved = {name: value + lengths[parts.index(part(name))] * lines[name] for name, value in weights.items()}
        value: Tensor = torch.func.functional_call(R1(state), moved, (pyramid, batch.features.first(2)))
        return value

    where = torch.zeros(len(parts), requires_grad=True)
    assert torch.autograd.gradcheck(penalty, where)
    assert bool((torch.autograd.grad(penalty(where), where)[0] != 0).all())
