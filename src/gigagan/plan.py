"""What a run takes on many devices, computed before any of them is there: memory, time, money, data, disk.

FLOPs are those of `cost` (exact); time is FLOPs over the devices' peak at a stated utilization (an assumption); the
memory model is checked against a tracker of tensors on small presets (tests/test_plan.py).
"""

from dataclasses import asdict, dataclass
from typing import Any

from gigagan.config import GeneratorConfig, RunConfig
from gigagan.cost import Cost, measure
from gigagan.errors import ConfigError

FLOAT32_BYTES = 4
R1_COPIES = 3
"""R1 keeps the forward pass and, for the second derivative, about twice as much again."""


@dataclass(frozen=True)
class Device:
    """An accelerator; peaks are dense ones of its data sheet."""

    memory_gb: float
    bfloat16_tflops: float
    float32_tflops: float


DEVICES = {
    "h100": Device(80, 989, 67),
    "h200": Device(141, 989, 67),
    "a100": Device(80, 312, 19.5),
    "l40s": Device(48, 362, 91.6),
    "rtx4090": Device(24, 165, 82.6),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by part."""

    weights: int
    """G, its running average, D."""
    gradients: int
    """Of the larger network: those of one are gone before the other's half."""
    optimizer: int
    """Adam's two moments."""
    activations: int
    """The most that either half of a step, or R1, keeps; with the scaled copies of weights that layers work with."""

    @property
    def total(self) -> int:
        """All of it; frameworks take some hundred megabytes more."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """The answers."""

    gpus: int
    gpu: str
    at_once: int
    """Images that a device has in memory: train.batch_gpu, or its share of the batch where that is smaller."""
    memory: dict[str, Memory]
    """Under `ddp`, and of a base model on several under `fsdp` (train.shard_G)."""
    fits: dict[str, bool]
    flops_an_image: int
    images_a_second: float
    days: float
    gpu_hours: float
    cost: float
    """At the given price."""
    data_bytes_a_second: float
    checkpoint_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self) | {"memory": {k: asdict(m) | {"total": m.total} for k, m in self.memory.items()}}


def plan(
    cfg: RunConfig, *, gpus: int, gpu: str, utilization: float, images: float, price: float, image_bytes: float
) -> Plan:
    """Of a run of `images` real images on `gpus` devices at a price an hour, with stored pictures of `image_bytes`.

    Raises ConfigError where the devices don't divide the batch, which no run could begin with.
    """
    if cfg.train.batch % gpus:
        raise ConfigError(f"train.batch is {cfg.train.batch}, but there are {gpus} GPUs; use a multiple of that")
    at_once = min(cfg.train.batch_gpu, cfg.train.batch // gpus)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"batch_gpu": at_once})})
    cost, device = measure(cfg), DEVICES[gpu]
    memory = {"ddp": memory_of(cfg, cost, ranks=1)}
    if gpus > 1 and isinstance(cfg.generator, GeneratorConfig):  # what can be sharded
        memory["fsdp"] = memory_of(cfg, cost, ranks=gpus)
    peak = device.bfloat16_tflops if cfg.train.dtype == "bfloat16" else device.float32_tflops
    again = cost.generator.total.flops + cost.discriminator.total.flops * 3 if cfg.train.recompute else 0
    rate = gpus * peak * 1e12 * utilization / (cost.step.total + again)
    hours = images / rate / 3600
    G, D = cost.generator.total.parameters, cost.discriminator.total.parameters
    return Plan(
        gpus=gpus,
        gpu=gpu,
        at_once=at_once,
        memory=memory,
        fits={name: one.total < device.memory_gb * 1e9 for name, one in memory.items()},
        flops_an_image=cost.step.total,
        images_a_second=rate,
        days=hours / 24,
        gpu_hours=hours * gpus,
        cost=hours * gpus * price,
        data_bytes_a_second=rate * image_bytes,
        checkpoint_bytes=FLOAT32_BYTES * (2 * G + D + 2 * (G + D)),
    )


def left_out(cfg: RunConfig) -> list[str]:
    """What a run of this configuration also computes and holds, and no figure here counts: networks that are given."""
    terms = {"the vision-aided discriminator": cfg.loss.vision_weight, "the CLIP loss": cfg.loss.clip_weight}
    terms |= {"the perceptual loss": cfg.loss.perceptual_weight, "the style loss": cfg.loss.style_weight}
    return ["the text encoder", *(name for name, weight in terms.items() if weight)]


def memory_of(cfg: RunConfig, cost: Cost, *, ranks: int) -> Memory:
    """Bytes on one device; with several ranks G's synthesis is spread over them (train.shard_G)."""
    G, D = cost.generator, cost.discriminator
    synthesis = sum(part.parameters for name, part in G.parts.items() if name.startswith("synthesis"))
    own_G = G.total.parameters - synthesis + -(-synthesis // ranks)
    return Memory(
        weights=FLOAT32_BYTES * (2 * own_G + D.total.parameters),
        gradients=FLOAT32_BYTES * max(own_G, D.total.parameters),
        optimizer=2 * FLOAT32_BYTES * (own_G + D.total.parameters),
        activations=_activations(cfg, cost),
    )


def _activations(cfg: RunConfig, cost: Cost) -> int:
    """The peak of a step: D's half (two pictures each, judged under two captions), G's half, or R1."""
    B, loss = cfg.train.batch_gpu, cfg.loss
    parts = {name: part.activation_bytes for name, part in cost.discriminator.parts.items()}
    stages = sum(kept for name, kept in parts.items() if name.startswith("stages"))
    heads = sum(kept for name, kept in parts.items() if name.startswith("heads"))
    synthesis = cost.generator.total.activation_bytes
    if cfg.train.recompute:  # a level or stage at a time, and what enters each, a small part of what it keeps
        stages = max((kept for name, kept in parts.items() if name.startswith("stages")), default=0)
        synthesis = max(part.activation_bytes for part in cost.generator.parts.values())
    judged = 2 if loss.match_weight_D else 1
    width = 2 if cfg.train.dtype == "bfloat16" else 4
    weights_G, weights_D = cost.generator.total.parameters, cost.discriminator.total.parameters
    halves = [
        B * (2 * stages + 2 * judged * heads + parts.get("text", 0)) + width * weights_D,
        B * (synthesis + stages + heads) + width * (weights_G + weights_D),
    ]
    if loss.r1_gamma:  # in float32
        seen = max(round(B * loss.r1_share), 1)
        halves.append(R1_COPIES * FLOAT32_BYTES * (seen * sum(parts.values()) // width + weights_D))
    return max(halves)
