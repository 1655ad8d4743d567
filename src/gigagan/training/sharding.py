"""G over several devices (FSDP2), and activations computed again instead of kept: for models that outgrow one.

D isn't sharded: R1 takes the gradient of a gradient, which `fully_shard` doesn't pass through. Files never know of it:
what is saved is whole, so a state loads on any number of ranks, sharded or not.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from gigagan import dist
from gigagan.models.discriminator import Discriminator
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler

_SECOND_ORDER: ContextVar[bool] = ContextVar("second_order", default=False)


def shard(G: Generator, device: torch.device) -> None:
    """Spread the weights of G's synthesis over all ranks; a level's are gathered while it runs.

    T and M, a small part of G, stay whole on each rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # It warns of changes in place, which nobody makes, at every level.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for part in [*G.synthesis.levels.values(), G.synthesis]:
        sharded: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)  # a loss is already a share of the whole batch's
        sharded.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has a part of it alone."""
    return isinstance(tensor, DTensor)


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor; all of it where it isn't sharded."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one on the CPU, and every rank must ask for it."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor on the device of `own`, and sharded as it is."""
    value = value.to(own.device)
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def recompute(G: Generator | Upsampler, D: Discriminator) -> None:
    """Keep only what enters G's levels and D's stages, and run each again in the backward pass."""
    for part in [*G.synthesis.levels.values(), *D.stages.values()]:
        _recompute(part)


def _recompute(part: nn.Module) -> None:
    forward = part.forward

    def again(*args: Any) -> Any:
        if not torch.is_grad_enabled() or _SECOND_ORDER.get():
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)  # nothing draws in there

    part.forward = again


@contextmanager
def second_order() -> Iterator[None]:
    """Inside, activations are kept: what is computed again has no second derivative."""
    token = _SECOND_ORDER.set(True)
    try:
        yield
    finally:
        _SECOND_ORDER.reset(token)
