"""The terms that look through a frozen image network: the vision-aided game, CLIP's contrast, the style read, the
paired distance.

All look at full-size pictures as D is shown them, augmented alike, so that one pass over a picture serves them all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan import losses
from gigagan.evaluation.fit import LABEL_SMOOTHING
from gigagan.models.frozen import ImageFeatures
from gigagan.models.layers import to_float
from gigagan.models.vision_aided import VisionAidedDiscriminator
from gigagan.training.contrast import Contrast, HeadsContrast
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState

Stats = dict[str, Tensor]
Terms = dict[str, tuple[float, Tensor]]
"""What a loss is the sum of: weight and value, by name."""


def vision_judges(
    state: TrainState, V: VisionAidedDiscriminator, batch: MicroBatch, generated: Tensor, real: Tensor
) -> tuple[Tensor, Stats]:
    """V's loss: own captions as in D, others' as in the matching loss (Eq. 6 and 8 with V for D)."""
    # Unstated: whether V takes part in the matching loss; it does, with D's weight and D's choice of pictures.
    seen = V.look(_look(state, torch.cat([generated, real])).maps)
    t = V.text(batch.features).t_global
    own = V.judge(seen, t.repeat(2, 1))
    gen_scores, real_scores = ([logits.chunk(2)[half] for logits in own] for half in (0, 1))
    total = _mean(gen_scores, losses.loss_generated).mean() + _mean(real_scores, losses.loss_real).mean()
    stats = {
        "Loss/V/adv": total.detach(),
        "Scores/vision_real": _score(real_scores),
        "Scores/vision_gen": _score(gen_scores),
    }
    if weight := state.weights.match_D:
        others = V.judge(seen, t[batch.other].repeat(2, 1))
        halves = _mean(others, losses.loss_generated).chunk(2)
        of_generated, of_real = (losses.mean_where(half, batch.has_other) for half in halves)
        match = of_generated + of_real if state.cfg.loss.match_generated else of_real
        total = total + weight * match
        stats["Loss/V/match"] = match.detach()
        stats["Scores/vision_mismatched"] = _score([logits.chunk(2)[1] for logits in others])
    return total, stats


def vision_judged(state: TrainState, batch: MicroBatch, generated: Tensor) -> Terms:
    """G's terms: what V says of its pictures, whether each fits its caption, how far it is from the real one of it."""
    weights = state.weights
    seen = _look(state, generated)
    terms: Terms = {}
    if state.V is not None:
        with torch.no_grad():
            t = state.V.text(batch.features).t_global
        adv = _mean(state.V.judge(state.V.look(seen.maps), t), losses.loss_real).mean()
        terms["vision"] = weights.vision, adv
    if weights.clip:
        terms["clip"] = weights.clip, _clip_contrastive(state, state.contrast, batch, seen)
    if weights.style:
        terms["style"] = weights.style, _style_read(state, batch, seen)
    if weights.perceptual:
        # Deviation: not in the paper's base model; on a small set it says what a caption looks like.
        real = batch.shown([to_float(batch.img)])[0]
        with torch.no_grad():
            target = _look(state, real).maps
        terms["perceptual"] = weights.perceptual, losses.perceptual_distance(seen.maps, target).mean()
    return terms


def _clip_contrastive(state: TrainState, contrast: Contrast | None, batch: MicroBatch, seen: ImageFeatures) -> Tensor:
    assert contrast is not None
    assert batch.others is not None
    # Deviation: the paper's batch has 512 captions or more; a small one borrows others from the training split,
    # but for those that are true of the picture as well.
    others = torch.cat([batch.others, contrast.others])
    own, true = contrast.text(batch.captions), _true_of(contrast, batch)
    return losses.clip_contrastive(contrast.picture(seen), own, others, scale=contrast.scale, true=true).mean()


def _true_of(contrast: Contrast, batch: MicroBatch) -> Tensor | None:
    """[B, N]: which captions of the batch and the borrowed ones aren't told from a picture's own, being true as well.

    Of the batch's none is left out, as in Eq. 9; among thousands of others there always is one.
    """
    assert batch.others is not None
    if not (batch.true and any(batch.true) and len(contrast.others)):
        return None
    alike = losses.same_caption(contrast.text([text for texts in batch.true for text in texts]), contrast.others)
    true = torch.stack([rows.any(dim=0) for rows in alike.split([len(texts) for texts in batch.true])])
    return torch.cat([true.new_zeros(len(true), len(batch.others)), true], dim=1)


def _style_read(state: TrainState, batch: MicroBatch, seen: ImageFeatures) -> Tensor:
    # Deviation: captions' vectors tell little of how a thing is drawn, and the paired terms blur it (docs/log.md); an
    # auxiliary classifier, frozen here (Odena et al. 2017).
    assert isinstance(state.contrast, HeadsContrast)
    logits = state.contrast.style_logits(seen)
    # All ranks have the term, whatever their pictures are.
    styles = torch.full((len(logits),), -1, device=logits.device) if batch.styles is None else batch.styles
    # Summed, since where no caption of a batch names a style the mean is none.
    total = F.cross_entropy(logits, styles, ignore_index=-1, label_smoothing=LABEL_SMOOTHING, reduction="sum")
    return total / len(styles)


def _look(state: TrainState, img: Tensor) -> ImageFeatures:
    assert state.image_network is not None
    return state.image_network(img, min_res=state.cfg.vision.resolution)


def _mean(logits: list[Tensor], loss: losses.PerPicture) -> Tensor:
    """Mean over V's heads of a loss, for each picture."""
    return torch.stack([loss(values) for values in logits]).mean(dim=0)


def _score(logits: list[Tensor]) -> Tensor:
    return torch.stack([values.detach().mean() for values in logits]).mean()
