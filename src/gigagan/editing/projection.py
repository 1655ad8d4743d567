"""Projection: the point of the latent space that draws a given picture, so that a picture from elsewhere can be edited.

Axes: N pictures, L style layers, S style.
"""

import dataclasses
from copy import deepcopy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from gigagan import losses
from gigagan.exported import check_weights
from gigagan.models.frozen import ImageNetwork
from gigagan.models.generator import Generator
from gigagan.models.latents import Latents
from gigagan.models.layers import image_pyramid, to_float

STEPS = 100
LR = 0.05
DECAY_FROM = 0.5  # share of the steps after which the rate falls to 0, linearly


def project(
    generator: Generator,
    start: Latents,
    img: UInt8[Tensor, "N 3 H W"],
    network: ImageNetwork | None = None,
    *,
    steps: int = STEPS,
    progress: bool = False,
) -> Latents:
    """The styles, one for each layer, whose pictures with the words of `start` are nearest to `img`.

    `start` is the conditional mean of a prompt that describes the picture (`Pipeline.latents` at psi 0). Near means L1
    over the whole pyramid and, given a network, the distance of its features. The words aren't searched for: with a
    prompt of something else a picture isn't found. What comes out is the nearest on the way, never farther than the
    start.
    """
    # Unstated: the paper projects nothing; Adam on a style for each layer, as Abdal et al. 2019 do for StyleGAN.
    check_weights(generator, "projection")
    synthesis = deepcopy(generator.synthesis).train()  # the convolutions' forms for training take a batch at once
    target = to_float(img.to(start.ws.device))
    levels = len(generator.cfg.resolutions)
    wanted = image_pyramid(target, levels=levels)
    with torch.inference_mode(False), torch.enable_grad():
        ws, t_local, mask = (x.clone() for x in (start.ws, start.t_local, start.mask))
        best, nearest = ws.clone(), torch.full([len(ws)], torch.inf, device=ws.device)
        ws.requires_grad_()
        features = None if network is None else [m.detach() for m in network(target).maps]
        optimizer = torch.optim.Adam([ws], lr=LR)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
        for _ in tqdm(range(steps), desc="projected", unit="step", disable=None if progress else True):
            drawn = synthesis(ws, t_local, mask)[0]
            drawn = torch.where(drawn.clamp(-1, 1) == target, target, drawn)  # beyond white is white
            distance = _pyramid_l1(image_pyramid(drawn, levels=levels), wanted)
            if network is not None and features is not None:
                distance = distance + losses.perceptual_distance(network(drawn).maps, features)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance.detach(), nearest)
            best = torch.where(nearer[:, None, None], ws.detach(), best)
            (ws.grad,) = torch.autograd.grad(distance.sum(), ws)
            optimizer.step()
            schedule.step()
    return dataclasses.replace(start, ws=best)


def _pyramid_l1(a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " N"]:
    """Of each picture, the mean absolute difference summed over levels."""
    return torch.stack([(x - y).abs().mean(dim=(1, 2, 3)) for x, y in zip(a, b, strict=True)]).sum(dim=0)


def _rate(done: float) -> float:
    return min(1.0, (1 - done) / (1 - DECAY_FROM))
