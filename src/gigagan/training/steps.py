"""The two half steps: one micro-batch, its losses, their gradients (paper 5).

Text meets only D's heads, so phi runs once over generated and real pictures together, and its features are judged
twice: under their own captions and under others'.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gigagan import losses
from gigagan.config import LossConfig
from gigagan.models.frozen import TextFeatures
from gigagan.models.layers import image_pyramid, to_float
from gigagan.training.health import length
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.sharding import second_order
from gigagan.training.state import TrainState, updating
from gigagan.training.vision import Terms, vision_judged, vision_judges

Stats = dict[str, Tensor]


def discriminator_step(state: TrainState, batch: MicroBatch, *, share: float, r1: bool) -> Stats:
    """Gradients of D's loss on one micro-batch, `share` of the whole batch; with R1 when it is due."""
    loss, weights = state.cfg.loss, state.weights
    B = len(batch.img)
    real_pyramid = image_pyramid(to_float(batch.img), levels=state.D.num_levels)
    with torch.no_grad():
        _, gen_pyramid = _generated(state, batch)
    gen_pyramid = batch.shown(gen_pyramid[: state.D.num_levels])
    real_shown = batch.shown(real_pyramid)
    stats: Stats = {}
    if weights.adv:
        total, stats = _judges(state, batch, gen_pyramid, real_shown)
        (total * share).backward()

    # V sees the full size alone, through a network of its own: another graph.
    if state.V is not None:
        judged, vision_stats = vision_judges(state, state.V, batch, gen_pyramid[0], real_shown[0])
        (judged * share).backward()
        stats |= vision_stats

    if r1 and weights.adv:
        count = max(round(B * loss.r1_share), 1)
        penalty = _r1(state, [img[:count] for img in real_shown], batch.features, count)
        (penalty * (weights.r1_gamma / 2 * loss.r1_interval * share)).backward()
        stats["Loss/D/r1"] = penalty.detach()
    return stats


def _judges(
    state: TrainState, batch: MicroBatch, gen_pyramid: list[Tensor], real_pyramid: list[Tensor]
) -> tuple[Tensor, Stats]:
    """D's loss of generated and real pictures, as shown to it."""
    loss, weights = state.cfg.loss, state.weights
    t_D = state.D.text(batch.features).t_global

    # Own captions: real is real, generated is generated (Eq. 6).
    exits = state.phi([torch.cat(pair) for pair in zip(gen_pyramid, real_pyramid, strict=True)], dtype=state.dtype)
    gen_logits, real_logits = _halves(state.D.judge(exits, t_D.repeat(2, 1)))
    adv = _sum(gen_logits, losses.loss_generated, loss, loss.intermediate_adv_weight).mean()
    adv = adv + _sum(real_logits, losses.loss_real, loss, loss.intermediate_adv_weight).mean()
    total = adv
    stats = {
        "Loss/D/adv": adv.detach(),
        "Scores/real": _last_score(real_logits),
        "Scores/gen": _last_score(gen_logits),
    }

    # Others' captions: real and, unless left out, generated are fake (Eq. 8).
    if weights.match_D:
        other_logits = state.D.judge(exits, t_D[batch.other].repeat(2, 1))
        of_generated, of_real = (
            losses.mean_where(_sum(half, losses.loss_generated, loss, loss.intermediate_match_weight), batch.has_other)
            for half in _halves(other_logits)
        )
        match = of_generated + of_real if loss.match_generated else of_real
        total = total + weights.match_D * match
        stats["Loss/D/match"] = match.detach()
        stats["Scores/mismatched"] = _last_score(_halves(other_logits)[1])
    return total, stats


def generator_step(state: TrainState, batch: MicroBatch, *, share: float) -> Stats:
    """Gradients of G's loss on one micro-batch, `share` of the whole batch."""
    w, pyramid = _generated(state, batch)
    state.mean_style += w.detach().mean(dim=0) * share
    terms = _generator_terms(state, batch, pyramid)
    nothing = pyramid[0].sum() * 0  # all weights may be 0 for a part of the run
    total = torch.stack([nothing, *(weight * value for weight, value in terms.values())]).sum()
    (total * share).backward()
    return {f"Loss/G/{name}": value.detach() for name, (_, value) in terms.items()}


def term_gradients(state: TrainState, batch: MicroBatch) -> dict[str, float]:
    """How hard each of G's terms pulls: the length of its gradient in G's parameters, times its weight.

    A term whose length is a hundredth of another's is not in the game, whatever its weight says. Of a sharded or
    compiled G nothing is measured.
    """
    if state.cfg.train.shard_G or state.cfg.train.compile:
        return {}
    with updating(state.G, state.opt_G):
        _, pyramid = _generated(state, batch)
        terms = _generator_terms(state, batch, pyramid)
        parameters = [p for p in state.G.parameters() if p.requires_grad]
        found = {}
        for name, (weight, value) in terms.items():
            gradients = torch.autograd.grad(weight * value, parameters, retain_graph=True, allow_unused=True)
            found[f"Gradients/G/{name}"] = float(length([g for g in gradients if g is not None]))
    return found


def _generated(state: TrainState, batch: MicroBatch) -> tuple[Tensor, list[Tensor]]:
    """Styles [B, S] and G's pyramid."""
    condition = state.G.text(batch.features)
    w = state.G.mapping(batch.z, condition.t_global)
    if batch.words is None:
        return w, state.synthesize(w, condition, *batch.given, dtype=state.dtype)
    # The 4 px layers follow the words too: what they say of the style is overruled by the finer ones.
    condition = state.G.text(batch.words)
    coarse, layers = state.G.mapping(batch.z, condition.t_global), state.cfg.generator.blocks[0]
    ws = torch.stack([coarse] * layers + [w] * (state.G.num_ws - layers), dim=1)
    return w, state.synthesize(ws, condition, dtype=state.dtype)


def _generator_terms(state: TrainState, batch: MicroBatch, pyramid: list[Tensor]) -> Terms:
    """All that G is told of its pictures."""
    weights = state.weights
    shown = batch.shown(pyramid[: state.D.num_levels])
    terms = _adversarial(state, batch, shown) if weights.adv else {}
    if state.image_network is not None:
        terms |= vision_judged(state, batch, shown[0])
    if weights.paired_l1:
        paired = losses.paired_l1(pyramid, image_pyramid(to_float(batch.img), levels=len(pyramid)))
        terms["paired_l1"] = weights.paired_l1, paired
    return terms


def _adversarial(state: TrainState, batch: MicroBatch, shown: list[Tensor]) -> Terms:
    """What D says of G's pictures under their own captions and, where it has a weight, under others'."""
    loss, weights = state.cfg.loss, state.weights
    exits = state.phi(shown, dtype=state.dtype)
    with torch.no_grad():
        t_D = state.D.text(batch.features).t_global
    adv = _sum(state.D.judge(exits, t_D), losses.loss_real, loss, loss.intermediate_adv_weight).mean()
    terms: Terms = {"adv": (weights.adv, adv)}
    if weights.match_G:
        # Unstated: G's side of the matching loss; the non-saturating counterpart of D's (paper.md 5.2, reading A), a
        # key sets B, a weight of 0 is C.
        logits = state.D.judge(exits, t_D[batch.other])
        sense = losses.loss_real if loss.match_G == "raise" else losses.loss_generated
        pairs = _sum(logits, sense, loss, loss.intermediate_match_weight)
        terms["match"] = weights.adv * weights.match_G, losses.mean_where(pairs, batch.has_other)
    return terms


def _r1(state: TrainState, pyramid: list[Tensor], features: TextFeatures, count: int) -> Tensor:
    """R1 in float32; fused attention kernels have no second derivative."""
    leaves = [img.detach().requires_grad_(True) for img in pyramid]
    loss = state.cfg.loss
    with sdpa_kernel(SDPBackend.MATH), second_order():
        logits = state.D(leaves, features.first(count), dtype=torch.float32)
        return losses.r1_penalty(
            logits, leaves, level_weights=loss.level_weights, intermediate_weight=loss.intermediate_adv_weight
        )


def _sum(logits: losses.Logits, loss: losses.PerPicture, cfg: LossConfig, weight: float) -> Tensor:
    return losses.multi_scale(logits, loss, level_weights=cfg.level_weights, intermediate_weight=weight)


def _halves(logits: losses.Logits) -> tuple[losses.Logits, losses.Logits]:
    """Logits of the first and of the second half of the batch."""
    halves = [[{j: v.chunk(2)[part] for j, v in level.items()} for level in logits] for part in (0, 1)]
    return halves[0], halves[1]


def _last_score(logits: losses.Logits) -> Tensor:
    return logits[0][max(logits[0])].detach().mean()
