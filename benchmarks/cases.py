"""What a worker times: a pass made of parts, and how its floating-point operations are counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's registry knows the CUDA ones only


@dataclass(frozen=True)
class Part:
    """A piece of work that is timed by itself."""

    run: Callable[[], Any]
    share: float = 1.0
    """How often it happens in a pass: 1/16 for a step that has the lazy penalty of every 16 steps."""


@dataclass(frozen=True)
class Case:
    """A pass: what one side of a row does, again and again."""

    parts: dict[str, Part]
    images: int = 1
    """Pictures that a pass draws, or trains on."""
    parameters: dict[str, int] | None = None
    """Trainable ones, by network."""
    flops: float | None = None
    """Of a pass, from the equations; None = counted once while it runs."""


def counted_flops(case: Case) -> float:
    """FLOPs of a pass by the operations that run: products and convolutions, 2 a multiply-add, as torch counts them."""
    total = 0.0
    for part in case.parts.values():
        with _FlopCount() as count:
            part.run()
        total += part.share * count.flops
    return total


def trainable(module: torch.nn.Module) -> int:
    """Parameters that get a gradient."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class _FlopCount(TorchDispatchMode):
    """Counts as torch's FlopCounterMode, without its hooks on modules, which fail on inputs that need no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode composite operations arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func._overloadpacket is CPU_ATTENTION:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out
