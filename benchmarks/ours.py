"""Our side of each row, through the classes that the commands use."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from cases import Case, Part
from torch import Tensor

from gigagan import config, cost
from gigagan.config import GeneratorConfig, RunConfig
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.models.frozen import TextFeatures, Unconditional, build_text_encoder
from gigagan.models.generator import Generator
from gigagan.models.inference import prepared
from gigagan.models.networks import build_generator
from gigagan.pipeline import Pipeline
from gigagan.training import loop
from gigagan.training.contrast import build_critics
from gigagan.training.guard import Wishes
from gigagan.training.state import TrainState
from gigagan.upsampling.enlarger import Enlarger, Request, Rows

HERE = Path(__file__).parent
CPU = torch.device("cpu")
CLIP_TOKENS = 77
NOTHING_ASKED = Wishes(stop=False, tick=False)
PROMPT_TOKENS = 16
"""Real tokens of a caption where random features stand for CLIP's; the peers get as many."""


def gemm(sides: Sequence[int]) -> Case:
    """Square matrix products: the most that these threads and this torch get out of the machine."""

    def product(side: int, dtype: torch.dtype) -> Part:
        a, b, out = (torch.randn(side, side).to(dtype) for _ in range(3))
        return Part(lambda: torch.mm(a, b, out=out))

    dtypes = (torch.float32, torch.bfloat16)
    return Case({f"{name(dtype)} {side}": product(side, dtype) for dtype in dtypes for side in sides}, flops=0)


def name(dtype: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


def configuration(preset: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A preset of the package, `defaults` (the paper's), or a file of this folder."""
    path = HERE / f"{preset}.yaml"
    if preset == "defaults":
        return config.from_dict({"text": {"encoder": "clip", "max_tokens": CLIP_TOKENS}})
    return config.load(str(path) if path.exists() else preset, overrides)


def generator_forward(cfg: GeneratorConfig, batch: int, dtype: torch.dtype) -> Callable[[], Any]:
    """What draws `batch` pictures with a generator of random weights, made ready as the pipeline does it.

    The text is encoded before, for it is encoded once a prompt: mapping and synthesis are what is timed.
    """
    generator = prepared(Generator(cfg, feature_dim=cost.CLIP_DIM), dtype)
    with torch.inference_mode():
        mask = torch.ones(batch, CLIP_TOKENS, dtype=torch.bool)
        tokens = torch.randn(batch, CLIP_TOKENS, cost.CLIP_DIM)
        condition = generator.text(TextFeatures(tokens, mask, mask.sum(dim=1) - 1))
    z = torch.randn(batch, cfg.z_dim)

    @torch.inference_mode()
    def run() -> list[Tensor]:
        return generator.synthesize(generator.mapping(z, condition.t_global), condition, dtype=dtype)

    return run


def forward(preset: str, batch: int, dtype: str) -> Case:
    """The generator of a preset, `batch` pictures a pass."""
    cfg = configuration(preset)
    counted = cost.measure(cfg).generator
    run = generator_forward(cfg.generator, batch, getattr(torch, dtype))
    flops = sum(part.flops for path, part in counted.parts.items() if path != "text")
    return Case({"forward": Part(run)}, batch, {"G": counted.total.parameters}, flops=float(batch * flops))


class RandomText:
    """Random features in place of CLIP's, whose weights aren't to be had here: the same work for the networks."""

    name = "random"
    feature_dim = cost.CLIP_DIM
    max_tokens = PROMPT_TOKENS

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, all of the same length."""
        tokens = [torch.randn(PROMPT_TOKENS, self.feature_dim) for _ in prompts]
        return TextFeatures.from_ragged(tokens, PROMPT_TOKENS)


def training(preset: str, overrides: Sequence[str] = ()) -> Case:
    """Steps of the training loop itself, D and G with the running average: with R1 in their share, and without."""
    cfg = configuration(preset, overrides)
    encoder: Any = RandomText() if cfg.text.encoder == "clip" else build_text_encoder(cfg.text)
    features: CaptionFeatures[TextFeatures] = CaptionFeatures(encoder)
    network, contrast = build_critics(cfg, features, CPU)
    state = TrainState(cfg, feature_dim=encoder.feature_dim, device=CPU, image_network=network, contrast=contrast)
    side, count = cfg.generator.resolution, cfg.train.batch
    batch = Batch(torch.randint(256, (count, 3, side, side), dtype=torch.uint8), _captions(count), [""] * count)
    stats: Any = SimpleNamespace(add=lambda values: None)

    def step(number: int) -> None:
        state.nimg = number * count  # the clock says whether R1 is due
        loop._step(state, batch, features, stats, cfg.train.batch_gpu, NOTHING_ASKED)  # the loop's own, never stale
        state.update_ema()

    share = 1 / cfg.loss.r1_interval if cfg.loss.r1_gamma else 0.0
    parts = {"step": Part(lambda: step(1), 1 - share)} if share < 1 else {}
    if share:
        parts["step with R1"] = Part(lambda: step(0), share)
    step(0)  # R1's graph is the highest: the peak shall not depend on which part is first
    parameters = {"G": trainable_of(state.opt_G), "D": trainable_of(state.opt_D)}
    return Case(parts, count, parameters, flops=float(count * cost.measure(cfg).step.total))


def trainable_of(optimizer: torch.optim.Optimizer) -> int:
    """Parameters that an optimizer moves; between two turns the networks themselves are frozen."""
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def _captions(count: int) -> list[str]:
    things = ("red apple", "rocket", "sad cat", "tall house", "green tree")
    return [f"a flat color picture of a {things[i % len(things)]} and {i} stars" for i in range(count)]


def _fresh() -> Iterator[str]:
    """Prompts that no pipeline has kept."""
    number = 0
    while True:
        number += 1
        yield f"a 3D render of a red apple beside {number} green leaves"


def _pipeline_flops(pipe: Pipeline) -> float:
    """Of one picture: all of the generator; the text encoder isn't counted."""
    text = {"encoder": "minilm", "max_tokens": pipe.text_encoder.max_tokens}
    cfg = configuration("emoji64").model_dump() | {"text": text, "generator": pipe.generator.cfg.model_dump()}
    return float(cost.measure(config.from_dict(cfg)).generator.total.flops)


def picture(dtype: str) -> Case:
    """A prompt never seen before to a picture, with the shipped model: text encoder, generator, pixels."""
    pipe = Pipeline.from_pretrained(dtype=dtype, upsampled=False)
    prompts = _fresh()
    part = Part(lambda: pipe(next(prompts), seeds=[1]))
    return Case({"picture": part}, 1, {"G": size_of(pipe.generator)}, flops=_pipeline_flops(pipe))


WHOLE = ["data.crop=0", "discriminator.window=128"]
"""The shipped upsampler's preset trains on crops; these let its whole picture be counted."""
WIDE = ["generator.channel_base=16384", "generator.channel_max=384"]


def large_picture(dtype: str, size: str) -> Case:
    """A prompt never seen before to 512 px: text encoder, generator, upsampler, pixels.

    `size`: shipped, or large = the paper's base generator on MiniLM's features and the shipped upsampler's family at
    twice its width, of random weights.
    """
    wide = configuration("emoji-up512", WHOLE + (WIDE if size == "large" else []))
    if size == "shipped":
        pipe = Pipeline.from_pretrained(dtype=dtype)
        base = _pipeline_flops(pipe)
    else:
        cfg = configuration("paper-t2i64").model_dump() | {"text": wide.text.model_dump()}
        paper = config.from_dict(cfg)
        encoder = build_text_encoder(wide.text)
        generator, upsampler = (_frozen(c, encoder.feature_dim) for c in (paper, wide))
        pipe = Pipeline(cast(Any, generator), encoder, dtype=getattr(torch, dtype), upsampler=cast(Any, upsampler))
        base = float(cost.measure(paper).generator.total.flops)
    prompts = _fresh()
    part = Part(lambda: pipe(next(prompts), seeds=[1]))
    networks = {"G": size_of(pipe.generator), "upsampler": size_of(cast(torch.nn.Module, pipe.upsampler))}
    return Case({"picture": part}, 1, networks, flops=base + cost.measure(wide).generator.total.flops)


def _frozen(cfg: RunConfig, feature_dim: int) -> torch.nn.Module:
    return build_generator(cfg.generator, feature_dim=feature_dim).eval().requires_grad_(False)


def tiles(dtype: str, side: int) -> Case:
    """AuraSR's task by a network of its size: a picture of `side` px, as many tiles of 64 px, four times as large."""
    cfg = configuration("peer_aura")
    network = cast(Any, _frozen(cfg, Unconditional.feature_dim))
    return _enlarging(Enlarger(network, Unconditional(), dtype=getattr(torch, dtype)), cfg, side)


def enlarged(dtype: str, side: int) -> Case:
    """The shipped upsampler on a picture of `side` px: as many pictures of 512 px as it makes."""
    enlarger = Pipeline.from_pretrained(dtype=dtype).enlarger
    assert enlarger is not None
    return _enlarging(enlarger, configuration("emoji-up512", WHOLE), side)


def _enlarging(enlarger: Enlarger, cfg: RunConfig, side: int) -> Case:
    low = torch.rand(3, side, side) * 2 - 1
    images = (side // enlarger.upsampler.cfg.input_resolution) ** 2

    def run() -> None:
        for _ in enlarger.bands(Rows(low), enlarger.factor, Request()):
            pass

    flops = float(images * cost.measure(cfg).generator.total.flops)
    return Case({"picture": Part(run)}, images, {"upsampler": size_of(enlarger.upsampler)}, flops=flops)


def sixteen(together: bool, dtype: str) -> Case:
    """Sixteen new prompts, in one call or in sixteen."""
    pipe = Pipeline.from_pretrained(dtype=dtype, upsampled=False)
    fresh = _fresh()

    def run() -> None:
        prompts = [next(fresh) for _ in range(16)]
        for call in [prompts] if together else [[prompt] for prompt in prompts]:
            pipe(call, seeds=list(range(len(call))))

    return Case({"pictures": Part(run)}, 16, {"G": size_of(pipe.generator)}, flops=16 * _pipeline_flops(pipe))


def size_of(network: torch.nn.Module) -> int:
    """Parameters of a network, frozen or not."""
    return sum(p.numel() for p in network.parameters())


def curve(over: str, values: Sequence[int], dtype: str) -> Case:
    """The generator of emoji64's family, widths and all: of each side (`over` = pixels), or of each batch at 64 px."""
    parts = {}
    for value in values:
        side, batch = (value, 1) if over == "pixels" else (64, value)
        levels = side.bit_length() - 2
        cfg = configuration("emoji64").generator.model_dump()
        cfg |= {"resolution": side, "blocks": [1] * levels, "num_filters": [2, 2, 1, 1, 1, 1, 1][:levels]}
        run = generator_forward(GeneratorConfig.model_validate(cfg), batch, getattr(torch, dtype))
        parts[str(value)] = Part(run)
    return Case(parts, flops=0)
