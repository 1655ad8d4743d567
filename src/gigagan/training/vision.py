"""The terms that look through a frozen image network: the vision-aided game and the paired perceptual distance.

Both look at full-size pictures as D is shown them, augmented alike, so that one pass over a picture serves both.
"""

import torch
from torch import Tensor

from gigagan import losses
from gigagan.models.layers import to_float
from gigagan.models.vision_aided import VisionAidedDiscriminator
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState

Stats = dict[str, Tensor]


def vision_judges(
    state: TrainState, V: VisionAidedDiscriminator, batch: MicroBatch, generated: Tensor, real: Tensor
) -> tuple[Tensor, Stats]:
    """V's loss: own captions as in D, others' as in the matching loss (Eq. 6 and 8 with V for D)."""
    # Unstated: whether V takes part in the matching loss; it does, with D's weight.
    seen = V.look(_maps(state, torch.cat([generated, real])))
    t = V.text(batch.features).t_global
    own = V.judge(seen, t.repeat(2, 1))
    gen_scores, real_scores = ([logits.chunk(2)[half] for logits in own] for half in (0, 1))
    total = _mean(gen_scores, losses.loss_generated).mean() + _mean(real_scores, losses.loss_real).mean()
    stats = {
        "Loss/V/adv": total.detach(),
        "Scores/vision_real": _score(real_scores),
        "Scores/vision_gen": _score(gen_scores),
    }
    if weight := state.cfg.loss.match_weight_D:
        others = V.judge(seen, t[batch.other].repeat(2, 1))
        match = losses.mean_where(_mean(others, losses.loss_generated), batch.has_other.repeat(2)) * 2
        total = total + weight * match
        stats["Loss/V/match"] = match.detach()
        stats["Scores/vision_mismatched"] = _score([logits.chunk(2)[1] for logits in others])
    return total, stats


def vision_judged(state: TrainState, batch: MicroBatch, generated: Tensor) -> tuple[Tensor, Stats]:
    """G's terms: what V says of its pictures, and how far they are from the real ones of their captions."""
    loss = state.cfg.loss
    maps = _maps(state, generated)
    total, stats = torch.zeros((), device=generated.device), {}
    if state.V is not None:
        with torch.no_grad():
            t = state.V.text(batch.features).t_global
        adv = _mean(state.V.judge(state.V.look(maps), t), losses.loss_real).mean()
        total = total + loss.vision_weight * adv
        stats["Loss/G/vision"] = adv.detach()
    if loss.perceptual_weight:
        # Deviation: not in the paper's base model; on a small set it says what a caption looks like.
        real = batch.augmentation([to_float(batch.img)])[0]
        with torch.no_grad():
            target = _maps(state, real)
        distance = losses.perceptual_distance(maps, target).mean()
        total = total + loss.perceptual_weight * distance
        stats["Loss/G/perceptual"] = distance.detach()
    return total, stats


def _maps(state: TrainState, img: Tensor) -> list[Tensor]:
    assert state.image_network is not None
    maps: list[Tensor] = state.image_network(img, min_res=state.cfg.vision.resolution).maps
    return maps


def _mean(logits: list[Tensor], loss: losses.PerPicture) -> Tensor:
    """Mean over V's heads of a loss, for each picture."""
    return torch.stack([loss(values) for values in logits]).mean(dim=0)


def _score(logits: list[Tensor]) -> Tensor:
    return torch.stack([values.detach().mean() for values in logits]).mean()
