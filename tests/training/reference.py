"""The losses of both half steps, written from the equations: one picture, caption, level and exit at a time.

Only the networks' layers are the package's; none of its losses or steps is used. D_ij enters phi before stage i + 1
and leaves it after stage j.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import TextFeatures
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState

Scores = dict[tuple[int, int], Tensor]
"""D_ij(x_i, c) of one picture under one caption, by (i, j)."""
Losses = dict[str, Tensor]
"""By the names of the statistics: what a half step reports, and `total`, whose gradient it leaves."""


def sp(u: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(u))


def discriminator_losses(state: TrainState, batch: MicroBatch, *, share: float) -> Losses:
    """D's and V's, Eq. 6 and 8, and R1 on the first of the pictures, due in this step."""
    loss, weights, B = state.cfg.loss, state.weights, len(batch.captions)
    captions = [one(batch.features, b) for b in range(B)]
    t_D = [state.D.text(caption).t_global for caption in captions]
    with torch.no_grad():
        generated = shown(state, batch, drawn(state, batch))
    real = shown(state, batch, [given(batch, b, state.D.num_levels) for b in range(B)])

    adv, match, vision, vision_match = (torch.zeros(()) for _ in range(4))
    pairs = int(batch.has_other.sum())
    for b in range(B):
        adv = adv + weighted(state, judged(state.D, generated[b], t_D[b]), sp, loss.intermediate_adv_weight) / B
        adv = adv + weighted(state, judged(state.D, real[b], t_D[b]), real_loss, loss.intermediate_adv_weight) / B
        vision = vision + seen(state, generated[b], captions[b], sp) / B
        vision = vision + seen(state, real[b], captions[b], real_loss) / B
        if not batch.has_other[b]:
            continue
        other = int(batch.other[b])
        for pyramid in [real[b], generated[b]] if loss.match_generated else [real[b]]:
            scores = judged(state.D, pyramid, t_D[other])
            match = match + weighted(state, scores, sp, loss.intermediate_match_weight) / pairs
            vision_match = vision_match + seen(state, pyramid, captions[other], sp) / pairs

    total = adv + weights.match_D * match + vision + weights.match_D * vision_match
    losses = {"Loss/D/adv": adv, "Loss/D/match": match, "Loss/V/adv": vision, "Loss/V/match": vision_match}
    r1 = r1_penalty(state, real, t_D)
    total = total + weights.r1_gamma / 2 * loss.r1_interval * r1
    return losses | {"Loss/D/r1": r1, "total": share * total}


def r1_penalty(state: TrainState, real: list[list[Tensor]], t_D: list[Tensor]) -> Tensor:
    """E |grad s|^2 over the looked at share of the real pictures, s the weighted sum of mean logits."""
    count, penalty = round(len(real) * state.cfg.loss.r1_share), torch.zeros(())
    for b in range(count):
        leaves = [img.detach().requires_grad_() for img in real[b]]
        scores = judged(state.D, leaves, t_D[b])
        s = weighted(state, scores, lambda u: u, state.cfg.loss.intermediate_adv_weight)
        for gradient in torch.autograd.grad(s, leaves, create_graph=True):
            penalty = penalty + (gradient**2).sum() / count
    return penalty


def generator_losses(state: TrainState, batch: MicroBatch, *, share: float) -> Losses:
    """G's: Eq. 6, its side of Eq. 8, Eq. 9, V's, the paired distances."""
    loss, weights, B = state.cfg.loss, state.weights, len(batch.captions)
    names = ("adv", "match", "vision", "clip", "perceptual", "paired_l1")
    terms = {name: torch.zeros(()) for name in names}
    captions = [one(batch.features, b) for b in range(B)]
    t_D = [state.D.text(caption).t_global for caption in captions]
    pyramids = drawn(state, batch)
    real = [given(batch, b, len(pyramids[b])) for b in range(B)]
    generated, shown_real = shown(state, batch, pyramids), shown(state, batch, real)
    pairs = int(batch.has_other.sum())
    sense: Callable[[Tensor], Tensor] = real_loss if loss.match_G == "raise" else sp
    for b in range(B):
        scores = judged(state.D, generated[b], t_D[b])
        terms["adv"] = terms["adv"] + weighted(state, scores, real_loss, loss.intermediate_adv_weight) / B
        if batch.has_other[b]:
            scores = judged(state.D, generated[b], t_D[int(batch.other[b])])
            terms["match"] = terms["match"] + weighted(state, scores, sense, loss.intermediate_match_weight) / pairs
        terms["vision"] = terms["vision"] + seen(state, generated[b], captions[b], real_loss) / B
        terms["clip"] = terms["clip"] + contrastive(state, batch, b, generated[b][0]) / B
        terms["perceptual"] = terms["perceptual"] + perceptual(state, generated[b][0], shown_real[b][0]) / B
        for img, target in zip(pyramids[b], real[b], strict=True):
            terms["paired_l1"] = terms["paired_l1"] + (img - target).abs().mean() / len(real[b]) / B
    weight = weights._asdict() | {"match": weights.adv * weights.match_G}
    total = sum(weight[name] * value for name, value in terms.items())
    return {f"Loss/G/{name}": value for name, value in terms.items() if weight[name]} | {"total": share * total}


def real_loss(u: Tensor) -> Tensor:
    return sp(-u)


def judged(D: Discriminator, pyramid: list[Tensor], t_D: Tensor) -> Scores:
    """D_ij = psi_j(phi_ij(x_i), t_D) + Conv(phi_ij(x_i)), j = i + 1 ... L (Eq. 7)."""
    stages, heads = list(D.stages.values()), list(D.heads.values())
    scores: Scores = {}
    for i in range(len(stages)):
        x = stages[i].from_rgb(pyramid[i])  # type: ignore[operator, union-attr]
        for j in range(i + 1, len(stages) + 1):
            x = stages[j - 1](x)
            scores[i, j] = heads[j - 1](x, heads[j - 1].unconditional(x), t_D)  # type: ignore[operator]
    return scores


def weighted(state: TrainState, scores: Scores, loss: Callable[[Tensor], Tensor], intermediate: float) -> Tensor:
    """sum_i r_i (loss_iL + intermediate * sum_{i < j < L} loss_ij), each the mean over positions."""
    total, last = torch.zeros(()), max(j for _, j in scores)
    for (i, j), logits in scores.items():
        total = total + state.cfg.loss.level_weights[i] * (1 if j == last else intermediate) * loss(logits).mean()
    return total


def seen(state: TrainState, pyramid: list[Tensor], caption: TextFeatures, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """V's loss of one picture under one caption, the mean over its heads."""
    assert state.V is not None
    assert state.image_network is not None
    logits = state.V(state.image_network(pyramid[0]).maps, caption)
    return sum(loss(one).mean() / len(logits) for one in logits)


def contrastive(state: TrainState, batch: MicroBatch, b: int, img: Tensor) -> Tensor:
    """-log of the share of its own caption among all (Eq. 9)."""
    assert state.contrast is not None
    assert state.image_network is not None
    assert batch.others is not None
    [picture] = state.contrast.picture(state.image_network(img))
    [own] = state.contrast.text(batch.captions[b : b + 1])
    captions = [own] + [c for c in torch.cat([batch.others, state.contrast.others]) if not torch.equal(c, own)]
    shares = [torch.exp(state.contrast.scale * (picture * caption).sum()) for caption in captions]
    return -torch.log(shares[0] / sum(shares))


def perceptual(state: TrainState, img: Tensor, target: Tensor) -> Tensor:
    """Mean over maps and places of |x/|x| - y/|y||^2."""
    assert state.image_network is not None
    ours, theirs = (state.image_network(one).maps for one in (img, target))
    distances = [
        ((x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2).sum(dim=1).mean()
        for x, y in zip(ours, theirs, strict=True)
    ]
    return torch.stack(distances).mean()


def drawn(state: TrainState, batch: MicroBatch) -> list[list[Tensor]]:
    """G's pyramid for each caption."""
    B = len(batch.captions)
    return [state.G(batch.z[b : b + 1], one(batch.features, b), dtype=torch.float64) for b in range(B)]


def given(batch: MicroBatch, b: int, levels: int) -> list[Tensor]:
    """The pyramid of a real picture, in [-1, 1]."""
    img = batch.img[b : b + 1].double() / 127.5 - 1
    return [F.avg_pool2d(img, 2**i) if i else img for i in range(levels)]


def shown(state: TrainState, batch: MicroBatch, pyramids: list[list[Tensor]]) -> list[list[Tensor]]:
    """What D is shown of each: its levels, as they are augmented."""
    return [
        batch.augmentation.part(slice(b, b + 1))(pyramid[: state.D.num_levels]) for b, pyramid in enumerate(pyramids)
    ]


def one(features: TextFeatures, b: int) -> TextFeatures:
    """What the frozen encoder says of caption b."""
    return TextFeatures(features.tokens[b : b + 1], features.mask[b : b + 1], features.global_index[b : b + 1])
