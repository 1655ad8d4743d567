"""Signs of a sick run, looked at once a tick: levels that died, text that is ignored, collapse (paper 12.1).

One forward pass of G and D on a few pictures, without gradient; hooks read what the layers did.
Axes: B batch, C channels, H and W height and width, N filters of a bank.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import L2Attention
from gigagan.models.generator import SynthesisLevel
from gigagan.models.layers import image_pyramid, to_float
from gigagan.models.upsampler import DecoderLevel
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState

Hook = Callable[[nn.Module, Any, Any], None]
PICTURES = 8
"""At most so many are looked at."""
DEAD = 0.02
"""A level whose features differ so little between prompts at one seed, in units of their size, doesn't follow them."""
IGNORED = 0.02
"""D tells pairs from mismatched ones by less than this."""
BLIND = 0.02
"""D tells real pictures from generated ones by less than this."""
WON = 0.005
"""D's loss is below this: it is so sure that G gets no gradient from it."""
SURE = 20.0
"""D tells real pictures from generated ones by more than this; 0.5 to 5 is healthy."""
STEEP = 1e5
"""R1's squared gradient of D at real pictures is above this."""
COLLAPSED = 0.01
"""Pictures of different prompts at one seed differ by less than this, in units of half the range."""
QUIET_KIMG = 20.0
"""Before so many thousand images D hasn't read a text yet, and nothing is called ill."""


@torch.no_grad()
def examine(state: TrainState, batch: MicroBatch) -> dict[str, float]:
    """Figures of G and D on the first pictures of a batch, by name (`Health/...`, `Logits/...`)."""
    count = min(PICTURES, len(batch.captions))
    features = batch.features.first(count)
    # One seed, so that what differs does so by the prompt; where no prompts differ the seeds are looked at.
    z = batch.z[:1].expand(count, -1) if len(set(batch.captions[:count])) > 1 else batch.z[:count]
    findings: dict[str, float] = {}
    training = state.G.training
    state.G.eval()
    with _watched(state.G, findings, "G"):
        given = [one[:count] for one in batch.given]
        pyramid = state.G(z, features, *given, dtype=state.dtype)
    state.G.train(training)
    findings["Health/G/picture_spread"] = float(pyramid[0].std(dim=0).mean()) if count > 1 else 1.0
    return findings | _judged(state, batch, count, pyramid) if state.cfg.loss.adv_weight else findings


def _judged(state: TrainState, batch: MicroBatch, count: int, pyramid: list[Tensor]) -> dict[str, float]:
    """Figures of D on real pictures and on G's."""
    findings: dict[str, float] = {}
    real = image_pyramid(to_float(batch.img[:count]), levels=state.D.num_levels)
    pyramid = pyramid[: state.D.num_levels]
    if batch.window is not None:
        window = batch.window.part(slice(count))
        real, pyramid = window(real), window(pyramid)
    t_D = state.D.text(batch.features).t_global
    with _watched(state.D, findings, "D"):
        exits = state.D.phi(real, dtype=state.dtype)
    own = state.D.judge(exits, t_D[:count])
    generated = state.D.judge(state.D.phi(pyramid, dtype=state.dtype), t_D[:count])
    for i, levels in enumerate(own):
        for j, logits in levels.items():
            findings[f"Logits/real/{i}_{j}"] = float(logits.mean())
            findings[f"Logits/gen/{i}_{j}"] = float(generated[i][j].mean())
    told = batch.has_other[:count]
    if not state.weights.match_D and state.cfg.discriminator.text_dim and told.any():
        # Without the matching loss no step looks at others' captions, which says the more of what D makes of text.
        others, last = state.D.judge(exits, t_D[batch.other[:count]]), max(own[0])
        gaps = (own[0][last] - others[0][last]).flatten(1).mean(dim=1)
        findings["Health/match_gap"] = float(gaps[told].mean())
    return findings


def alarms(row: dict[str, float], kimg: float) -> list[str]:
    """What is wrong with a run whose tick gave this row, a line each."""
    if kimg < QUIET_KIMG:
        return []
    found = []
    for name, spread in row.items():
        if name.startswith("Health/G/spread/") and spread < DEAD:
            level = name.removeprefix("Health/G/spread/")
            found.append(f"{level} of G hardly differs between prompts, or seeds of one ({spread:.3f}): a dead level")
    gap = row.get("Health/match_gap")
    if gap is not None and gap < IGNORED:
        found.append(f"D tells a caption from another one by {gap:.3f}: the text is ignored")
    real_gap = row.get("Health/real_gap")
    if real_gap is not None and real_gap < BLIND:
        found.append(f"D tells real pictures from generated ones by {real_gap:.3f}: it has learned nothing")
    if real_gap is not None and real_gap > SURE:
        found.append(f"D tells real pictures from generated ones by {real_gap:.1f}: it has won, lower optim_D.lr")
    if row.get("Loss/D/adv", 1.0) < WON:
        found.append(f"D's loss is {row['Loss/D/adv']:.4f}: it has won, and G learns nothing from it")
    if row.get("Loss/D/r1", 0.0) > STEEP:
        found.append(f"D's squared gradient at real pictures is {row['Loss/D/r1']:.3g}: raise loss.r1_gamma")
    if row.get("Health/G/picture_spread", 1.0) < COLLAPSED:
        spread = row["Health/G/picture_spread"]
        what = "pictures of different prompts, or seeds of one,"
        found.append(f"{what} differ by {spread:.3f}: G has collapsed, or ignores the text")
    return found


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Of all that an optimizer moves."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def length(tensors: list[Tensor]) -> Tensor:
    """Euclidean length of all the numbers together."""
    return torch.stack(torch._foreach_norm(tensors)).norm() if tensors else torch.zeros(())


@contextmanager
def _watched(network: nn.Module, findings: dict[str, float], name: str) -> Iterator[None]:
    """Inside, layers note what they do: spread of levels, entropies of attention and of the choice of filters."""

    def level(path: str) -> Hook:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            x = (output[0] if isinstance(output, tuple) else output).to(torch.float32)
            between = x.var(dim=0, correction=0).mean() if len(x) > 1 else x.var()
            findings[f"Health/{name}/spread/{path}"] = float((between / x.square().mean().clamp(min=1e-12)).sqrt())

        return hook

    def attention(path: str) -> Hook:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x, context, mask = (*inputs, None)[:3]
            two = (x[:2], context[:2], None if mask is None else mask[:2])  # all pairs of places: large
            findings[f"Health/{name}/attention_entropy/{path}"] = _attention_entropy(module, *two)

        return hook

    def bank(path: str) -> Hook:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            findings[f"Health/{name}/filter_entropy/{path}"] = _entropy(module.to_select(inputs[1]).softmax(dim=1))

        return hook

    handles = []
    for path, module in network.named_modules():
        if isinstance(module, SynthesisLevel | DecoderLevel):
            handles.append(module.register_forward_hook(level(path.rpartition(".")[2])))
        elif isinstance(module, L2Attention) and not path.startswith("text."):
            handles.append(module.register_forward_hook(attention(path)))
        elif isinstance(module, AdaptiveConv) and len(module.bank) > 1:
            handles.append(module.register_forward_hook(bank(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention_entropy(layer: L2Attention, x: Tensor, context: Tensor, key_mask: Tensor | None = None) -> float:
    """Mean entropy of a layer's weights over the keys that count, in units of that of equal weights."""
    q = layer.split(layer.to_q(x)).to(torch.float32)
    k = layer.split((layer.to_k or layer.to_q)(context)).to(torch.float32)
    logits = -torch.cdist(q, k).square() / math.sqrt(q.shape[-1])
    keys = torch.full((len(x),), k.shape[2], device=x.device)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None], -math.inf)
        keys = key_mask.sum(dim=1)
    weights = logits.softmax(dim=3)
    entropy = -torch.special.xlogy(weights, weights).sum(dim=3).mean(dim=(1, 2))
    return float((entropy / keys.clamp(min=2).log()).mean())


def _entropy(weights: Tensor) -> float:
    """Mean entropy of distributions in the last axis, in units of that of equal weights."""
    entropy = -torch.special.xlogy(weights, weights).sum(dim=-1)
    return float(entropy.mean()) / math.log(weights.shape[-1])
