"""The losses (paper 5): functions of logits and images. High logits mean real.

Axes: B batch, C channels, H and W height and width.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Logits = list[dict[int, Tensor]]
SAME_CAPTION = 1e-4
"""Vectors of captions with a cosine this close to 1 are of one caption."""
PerPicture = Callable[[Tensor], Tensor]
"""A logit map [B, 1, H, W] to a loss for each picture, [B]."""


def loss_real(logits: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """softplus(-D): small where D says real; over positions the mean."""
    # Unstated: the reduction of a logit map; the loss a position, then the mean.
    return F.softplus(-logits).mean(dim=(1, 2, 3))


def loss_generated(logits: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """softplus(D): small where D says generated; over positions the mean."""
    return F.softplus(logits).mean(dim=(1, 2, 3))


def multi_scale(
    logits: Logits,
    loss: PerPicture,
    *,
    level_weights: Sequence[float],
    intermediate_weight: float,
) -> Float[Tensor, " B"]:
    """sum_i r_i (loss(D_iL) + weight * sum_{i<j<L} loss(D_ij)) for each picture (Eq. 6 with its weights)."""
    # Unstated: how the weights of levels and exits multiply (paper.md 5.1).
    last = max(logits[0])
    total = torch.zeros((), device=logits[0][last].device)
    for exits, level_weight in zip(logits, level_weights, strict=True):
        for j, values in exits.items():
            weight = level_weight * (1.0 if j == last else intermediate_weight)
            if weight:
                total = total + weight * loss(values)
    return total


def r1_penalty(
    logits: Logits, pyramid: list[Tensor], *, level_weights: Sequence[float], intermediate_weight: float
) -> Tensor:
    """mean_b sum_i |grad_{x_i} s_b|^2, s the weighted sum of averaged logits; times gamma / 2 outside."""
    # Unstated: which logits R1 takes the gradient of; the losses' own weighted sum of averaged logits.
    score = multi_scale(
        logits,
        lambda values: values.mean(dim=(1, 2, 3)),
        level_weights=level_weights,
        intermediate_weight=intermediate_weight,
    )
    gradients = torch.autograd.grad(score.sum(), pyramid, create_graph=True)
    return torch.stack([g.square().sum(dim=(1, 2, 3)) for g in gradients]).sum(dim=0).mean()


def mismatched(captions: Sequence[str], generator: torch.Generator) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """For each picture the index of a caption that isn't its own, and whether there is one (Eq. 8's c-hat).

    The captions are rolled by a random step; where that meets an equal caption, the next different one is taken.
    """
    B = len(captions)
    step = int(torch.randint(1, max(B, 2), (), generator=generator))
    index, valid = [], []
    for b in range(B):
        others = ((b + step + k) % B for k in range(B))
        other = next((o for o in others if captions[o] != captions[b]), None)
        index.append(b if other is None else other)
        valid.append(other is not None)
    return torch.tensor(index), torch.tensor(valid)


def mean_where(values: Float[Tensor, " B"], valid: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean of the values that count; 0 when none does."""
    weight = valid.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def paired_l1(pyramid: list[Tensor], real_pyramid: list[Tensor]) -> Float[Tensor, ""]:
    """mean over levels of |G(z, c)_i - x_i|, c the caption of x."""
    # Deviation: not in the paper; on a small set it points every level to what its caption means.
    return torch.stack([(a - b).abs().mean() for a, b in zip(pyramid, real_pyramid, strict=True)]).mean()


def clip_contrastive(
    pictures: Float[Tensor, "B D"],
    own: Float[Tensor, "B D"],
    others: Float[Tensor, "N D"],
    *,
    scale: float,
    true: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, " B"]:
    """-log(exp(s_own) / (exp(s_own) + sum_n exp(s_n))), s the scaled cosine of a picture and a caption (Eq. 9).

    All vectors are of unit length. `others` may hold a picture's own caption, which isn't told from itself, nor is it
    from what else is `true` of the picture.
    """
    # Unstated: the temperature; CLIP's own, as in the loss that CLIP was trained with (paper.md 5.3).
    own_score = scale * (pictures * own).sum(dim=1)
    scores = scale * pictures @ others.T
    left_out = same_caption(own, others)
    if true is not None:
        left_out = left_out | true
    scores = scores.masked_fill(left_out, -math.inf)
    return torch.logaddexp(own_score, scores.logsumexp(dim=1)) - own_score


def same_caption(a: Float[Tensor, "A D"], b: Float[Tensor, "B D"]) -> Bool[Tensor, "A B"]:
    """Which vectors of unit length are of one caption."""
    return a @ b.T > 1 - SAME_CAPTION


def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " B"]:
    """Mean over maps and places of |x/|x| - y/|y||^2 over channels (LPIPS, Zhang et al. 2018, all weights 1).

    `a` and `b` are feature maps [B, C, H, W] of two batches; 0 for equal ones, at most 4.
    """
    distances = [
        (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def ema_decay(batch: int, ema_kimg: float) -> float:
    """Decay a step that halves a weight's share in ema_kimg thousand images."""
    return math.pow(0.5, batch / (ema_kimg * 1000))
