"""What a configuration costs, before a weight of it exists: parameters, FLOPs, activation memory, part by part.

The networks are built and run on the meta device, where a tensor has a shape and no storage.

FLOPs are those of the equations, 2 a multiply-add, whichever form runs: linear layers, convolutions, attention's two
products, and the kernel mixed from its bank once a sample. Elementwise work, norms, resampling and demodulation are
left out, and so are frozen encoders, whose features training keeps.

Activation memory is what a training pass keeps for its backward pass, in bytes for each picture: tensors saved by
autograd in the arithmetic of `train.dtype` and in the form that training runs, each storage once; of attention,
what the fused kernels save. Weights and what grows with them alone aren't in it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gigagan.config import LossConfig, RunConfig, TextConfig
from gigagan.errors import CheckpointError
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import L2Attention
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.frozen_files import locate, read_config
from gigagan.models.layers import EqualConv, EqualLinear
from gigagan.models.networks import build_generator
from gigagan.models.upsampler import INPUT_CHANNELS, Upsampler

META = torch.device("meta")
MINILM_DIM = 384  # all-MiniLM-L6-v2, the encoder in the package
CLIP_DIM = 768  # ViT-L/14, the paper's


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution in the forward pass of one picture."""

    module: str
    """Path of the module that does it."""
    flops: int
    weighted: bool
    """Whether one of its two factors is a weight, or a kernel made of weights and style."""

    def gradients(self, *, trained: bool, image: bool) -> int:
        """How many of the two factors need a gradient, given that the weights or the picture do."""
        of_text_alone = self.module.startswith("text.") or self.module.endswith(".to_scale")
        image = image and not of_text_alone
        if not self.weighted:
            return 2 * (trained or image)
        first = self.module == "text.project" or self.module.endswith(".from_rgb")
        return trained + (image or (trained and not first))


@dataclass(frozen=True)
class PartCost:
    """A part of a network, for one picture."""

    parameters: int
    """Trainable ones."""
    flops: int
    """Of the forward pass."""
    activation_bytes: int
    """Kept for the backward pass."""


@dataclass(frozen=True)
class NetworkCost:
    """A network by part, in the order of its forward pass."""

    parts: dict[str, PartCost]
    products: list[Product]

    @property
    def total(self) -> PartCost:
        """All of it."""
        parts = self.parts.values()
        return PartCost(
            parameters=sum(part.parameters for part in parts),
            flops=sum(part.flops for part in parts),
            activation_bytes=sum(part.activation_bytes for part in parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "parameters": {"total": self.total.parameters}
            | {name: part.parameters for name, part in self.parts.items()},
            "flops": self.total.flops,
            "flops_by_part": {name: part.flops for name, part in self.parts.items()},
            "activation_bytes": self.total.activation_bytes,
            "activation_bytes_by_part": {name: part.activation_bytes for name, part in self.parts.items()},
        }


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one optimizer step of D and one of G, for each image of the batch."""

    discriminator: int
    """G forward; D forward and backward on a generated and a real picture."""
    generator: int
    """G forward and backward; D forward and back to the picture."""
    r1: int
    """R1's share: it runs on some pictures of some steps."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.discriminator + self.generator + self.r1

    def to_dict(self) -> dict[str, int]:
        """Plain numbers, for JSON."""
        return {
            "flops": self.total,
            "discriminator": self.discriminator,
            "generator": self.generator,
            "r1": self.r1,
        }


@dataclass(frozen=True)
class Cost:
    """What a run's networks and steps cost."""

    generator: NetworkCost
    discriminator: NetworkCost
    step: StepCost

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "generator": self.generator.to_dict(),
            "discriminator": self.discriminator.to_dict(),
            "step": self.step.to_dict(),
        }


def measure(cfg: RunConfig) -> Cost:
    """The cost of a configuration. Raises CheckpointError where the text encoder it names by path has no width."""
    feature_dim = _feature_dim(cfg.text)
    dtype = torch.bfloat16 if cfg.train.dtype == "bfloat16" else torch.float32
    sides = [cfg.judged_side >> i for i in range(len(cfg.discriminator.blocks))]
    with META:
        G = build_generator(cfg.generator, feature_dim=feature_dim)
        D = Discriminator(cfg.discriminator, resolution=sides[0], feature_dim=feature_dim, levels=cfg.generator.levels)

    def features(B: int) -> TextFeatures:
        T = 1 if cfg.text.encoder in ("classes", "none") else cfg.text.max_tokens
        mask = torch.ones(B, T, dtype=torch.bool, device=META)
        return TextFeatures(torch.zeros(B, T, feature_dim, device=META), mask, mask.sum(dim=1))

    def generate(B: int) -> None:
        z = torch.zeros(B, cfg.generator.z_dim, device=META)
        if isinstance(G, Upsampler):
            side = cfg.shown_side // G.cfg.factor
            G(z, features(B), torch.zeros(B, INPUT_CHANNELS, side, side, device=META), dtype=dtype)
        else:
            G(z, features(B), dtype=dtype)

    def judge(B: int) -> None:
        D([torch.zeros(B, 3, side, side, device=META) for side in sides[: D.num_levels]], features(B), dtype=dtype)

    generator = _network_cost(G, generate)
    discriminator = _network_cost(D, judge)
    frozen = tuple(f"stages.{side}x{side}." for side in sides[: cfg.train.freeze_D])
    step = _step_cost(generator.products, discriminator.products, cfg.loss, cfg.train.batch_gpu, frozen)
    return Cost(generator, discriminator, step)


def _step_cost(
    G: list[Product], D: list[Product], loss: LossConfig, batch_gpu: int, frozen: tuple[str, ...]
) -> StepCost:
    """A product costs once forward, and once more for each of its factors that needs a gradient.

    R1 is that rule twice: the products of the forward pass and of the gradient to the picture, all of them
    differentiated once more. Counted is the adversarial game; both matching terms judge the same features again.
    """
    discriminator = sum(p.flops for p in G)
    generator = sum(p.flops * (1 + p.gradients(trained=True, image=False)) for p in G)
    r1 = 0
    for p in D:
        trained = not p.module.startswith(frozen) if frozen else True
        is_text, is_head = p.module.startswith("text."), p.module.startswith("heads.")
        pictures = 1 if is_text else 2
        asks_text = is_head and not p.module.endswith(".unconditional")
        judged_D = 2 if asks_text and loss.match_weight_D else 1
        judged_G = 2 if asks_text and loss.match_weight_G else 1
        to_image = p.gradients(trained=False, image=True)
        discriminator += p.flops * pictures * judged_D * (1 + p.gradients(trained=trained, image=False))
        generator += p.flops * judged_G * (1 + to_image)
        r1 += p.flops * (1 + to_image) * (1 + p.gradients(trained=trained, image=True))
    share = max(round(batch_gpu * loss.r1_share), 1) / batch_gpu / loss.r1_interval if loss.r1_gamma else 0
    return StepCost(discriminator, generator, round(r1 * share))


def _network_cost(network: nn.Module, run: Callable[[int], None]) -> NetworkCost:
    with _Probe(network).attached() as one:
        run(1)
    with _Probe(network).attached() as two:
        run(2)
    # What one more picture adds: weights, and copies of them, are saved once for all.
    saved = two.saved - one.saved
    parameters: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        parameters[_part(name)] += parameter.numel() * parameter.requires_grad
    flops: Counter[str] = Counter()
    for product in one.products:
        flops[_part(product.module)] += product.flops
    parts = dict.fromkeys([*map(_part, one.visited), *parameters])
    return NetworkCost({name: PartCost(parameters[name], flops[name], saved[name]) for name in parts}, one.products)


def _part(path: str) -> str:
    """The part that a module or parameter belongs to, by its path."""
    head, *rest = path.split(".")
    if head == "synthesis" and rest and rest[0] in ("encoder", "from_rgb"):
        return ".".join(rest[:2]) if rest[0] == "encoder" else "from_rgb"
    if head == "synthesis":
        return f"synthesis.{rest[1]}" if rest and rest[0] == "levels" else "synthesis.4x4"  # the learned input
    return f"{head}.{rest[0]}" if head in ("stages", "heads") else head


class _Probe:
    """Hooks on every module of a network that note its products and what autograd saves in it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.products: list[Product] = []
        self.visited: dict[str, None] = {}
        self.saved: Counter[str] = Counter()
        self._inside: list[tuple[str, nn.Module]] = []
        self._storages: dict[int, Tensor] = {}  # held, so that no storage takes the place of another

    @contextmanager
    def attached(self) -> Iterator["_Probe"]:
        """While inside, it listens."""
        handles = []
        for path, module in self.network.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(self._enter(path)))
                handles.append(module.register_forward_hook(self._leave(path)))
        try:
            with saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._storages.clear()

    def _enter(self, path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._inside.append((path, module))
            if not isinstance(module, nn.ModuleDict) and path != "synthesis":
                self.visited[path] = None

        return hook

    def _leave(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._inside.pop()
            self.products += [Product(path, *product) for product in _products(module, inputs, output)]
            if isinstance(module, L2Attention):
                self.saved[_part(path)] += _attention_bytes(module, *inputs[:2])

        return hook

    def _save(self, tensor: Tensor) -> Tensor:
        path, module = self._inside[-1] if self._inside else (next(reversed(self.visited)), self.network)
        storage = tensor.untyped_storage()
        if not isinstance(module, L2Attention) and storage._cdata not in self._storages:
            self._storages[storage._cdata] = tensor
            self.saved[_part(path)] += storage.nbytes()
        return tensor


def _products(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Iterator[tuple[int, bool]]:
    """FLOPs of a module's own products, and whether a weight is in them."""
    if isinstance(module, EqualLinear | EqualConv):
        yield 2 * output.numel() * module.weight[0].numel(), True
    elif isinstance(module, AdaptiveConv):
        x, N = inputs[0], len(module.bank)
        kernel = module.bank[0].numel()  # O * I * k * k
        if N > 1:
            yield 2 * N * kernel * len(x), True
        yield 2 * kernel * len(x) * x[0, 0].numel(), True
    elif isinstance(module, L2Attention):
        x, context = inputs[:2]
        inner_dim = len(module.to_q.weight)
        yield 4 * len(x) * x.shape[1] * context.shape[1] * inner_dim, False


def _attention_bytes(module: L2Attention, x: Tensor, context: Tensor) -> int:
    """q, k, v and the result as the fused kernels take them (two channels more a head), a float32 number for each
    query and head, and k in float32 for its norm."""
    inner_dim, (B, Q), K = len(module.to_q.weight), x.shape[:2], context.shape[1]
    wide = inner_dim + 2 * module.num_heads
    return B * ((2 * Q + 2 * K) * wide * x.element_size() + 4 * Q * module.num_heads + 4 * K * inner_dim)


def _feature_dim(cfg: TextConfig) -> int:
    """Width of the frozen text features, without loading the encoder."""
    if cfg.encoder in ("classes", "none"):
        return cfg.num_classes
    if cfg.encoder == "hashed":
        return HashedText.feature_dim
    if not cfg.path:
        return MINILM_DIM if cfg.encoder == "minilm" else CLIP_DIM
    folder = locate(Path(cfg.path))[0]
    config = read_config(folder)
    width = config.get("text_config", config).get("hidden_size")
    if not isinstance(width, int) or width < 1:
        raise CheckpointError(f"{folder / 'config.json'}: hidden_size is {width!r}; expected the encoder's width")
    return width
