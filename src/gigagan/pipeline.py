"""Prompts and seeds to pictures: the only sampling path there is.

A picture is a function of model, prompt, seed, psi, dtype and device alone. Its latent comes from its own seed, its
text is encoded alone, and the networks always run `micro_batch_size` pictures at once, short batches padded, so that
the arithmetic of one doesn't depend on its neighbors.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from gigagan import dist
from gigagan.checkpoint import find_model, load_model, save_model
from gigagan.errors import ConfigError, PromptError
from gigagan.exported import check_options, check_weights, is_exported, load_exported, runs_graphs
from gigagan.hub import check_hub_id, push
from gigagan.metadata import PictureInfo
from gigagan.model_files import hash_of_parts
from gigagan.models.frozen import TextEncoder
from gigagan.models.generator import Generator
from gigagan.models.inference import prepared
from gigagan.models.latents import Latents, truncate
from gigagan.models.layers import finite, to_float, to_uint8
from gigagan.models.text import TextCondition
from gigagan.models.upsampler import Upsampler
from gigagan.request import MAX_SEED, check_prompts, check_psi, check_seed, pair_with_seeds
from gigagan.upsampling.drawn import SecondStage
from gigagan.upsampling.enlarger import Enlarger, Request
from gigagan.upsampling.photo import as_photo, upsampled_picture

DEFAULT_PSI = 0.7
"""Truncation of the command line and the pipeline alike, so that the same seed is the same picture in both."""
MEAN_SEED = MAX_SEED + 1  # of the latents of the conditional mean: no picture's seed
MEAN_SAMPLES = 16  # paper 9
CACHED_PROMPTS = 256
SMALL_PARAMETERS = 50_000_000
OutputType = Literal["pil", "np", "pt"]


def micro_batch_size(generator: Generator, device: torch.device) -> int:
    """Pictures that the networks draw at once: a constant of model and device, whatever is asked for."""
    # Of a small network most of the time is spent between its products, and four pictures cost twice one (emoji64 on
    # two cores). A large one keeps a processor busy with a single picture, and padding would cost it whole pictures.
    if device.type != "cpu":
        return 8  # an accelerator is idle most of the time with a single one
    return 4 if sum(p.numel() for p in generator.synthesis.parameters()) < SMALL_PARAMETERS else 1


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures, each with its prompt and seed: prompts[0] with all its seeds, then prompts[1] ..."""

    images: Any
    """As output_type says. pil: list of PIL pictures; np: float32 [N, H, W, 3] in [0, 1]; pt: float32 [N, 3, H, W] in
    [0, 1]. All hold the same 8-bit values."""
    prompts: list[str]
    seeds: list[int]
    truncation_psi: float
    pyramid: list[Tensor] = field(repr=False)
    """The generator's pictures at every resolution, uint8 [N, 3, r, r]; index 0 = full resolution."""
    warnings: list[str] = field(default_factory=list)
    """What was changed in the request, one line each: prompts that were cut."""

    @property
    def resolutions(self) -> list[int]:
        """Sides of the pyramid's pictures, full resolution first."""
        return [level.shape[-1] for level in self.pyramid]

    def level(self, resolution: int) -> list[Image.Image]:
        """The generator's own pictures at this resolution. Raises ConfigError where it makes none."""
        if resolution not in self.resolutions:
            raise ConfigError(f"no level of {resolution} px; there are {', '.join(map(str, self.resolutions))}")
        return to_pil(self.pyramid[self.resolutions.index(resolution)])


@dataclass(frozen=True)
class _Prompt:
    """All that a prompt is to the networks; batch axis of one."""

    condition: TextCondition
    w_mean: Tensor
    enlarged: TextCondition | None
    """What it is to the upsampler, where there is one."""


class Pipeline:
    """A generator with its text encoder: `pipe("a red apple", seeds=[0]).images[0]`."""

    def __init__(
        self,
        generator: Generator,
        text_encoder: TextEncoder,
        *,
        dtype: torch.dtype = torch.float32,
        index: Mapping[str, Any] | None = None,
        micro_batch: int = 0,
        compiled: bool = False,
        upsampler: Upsampler | None = None,
        notice: str = "",
    ) -> None:
        """For networks in memory; `from_pretrained` reads a directory. The networks are copied as they are now.

        With an `upsampler` of the generator's side pictures come out of that, and `upsample` enlarges others.

        `micro_batch`: pictures drawn at once, 0 = `micro_batch_size`. Another number may change the last bit of pixels.
        `compiled`: by torch.compile, which takes a minute or more at the first call; pixels may differ in the last bit.
        """
        self.generator = generator
        self.text_encoder = text_encoder
        self.dtype = dtype
        self.index = dict(index or {})
        self.notice = notice
        self.micro_batch = micro_batch or micro_batch_size(generator, self.device)
        self.compiled = compiled
        self._drawing = prepared(generator, dtype, pack=not compiled)
        synthesis = self._drawing.synthesis
        self._synthesize = torch.compile(synthesis, dynamic=False) if compiled else synthesis
        self.upsampler = upsampler
        self._second = None if upsampler is None else SecondStage(upsampler, generator, dtype)
        alone = None if upsampler is None or runs_graphs(upsampler) else upsampler  # photographs need its weights
        self.enlarger = None if alone is None else Enlarger(alone, text_encoder, dtype=dtype)
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = "emoji",
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        compiled: bool = False,
        upsampled: bool = True,
    ) -> "Pipeline":
        """The model in a directory, the one of that name in the package, or that of a hub id (`checkpoint.find_model`).

        Or an exported model (`gigagan export`), run by ONNX Runtime or OpenVINO: it draws, but holds no weights.

        `revision`: branch, tag or commit of a hub id. `dtype`: float32 (default) or bfloat16. `compiled`: as in the
        constructor. Unless `upsampled` the upsampler is left out where there is one.

        Raises CheckpointError where a file is missing, damaged or of another shape.
        """
        arithmetic = dist.dtype(dtype)
        if is_exported(place := find_model(path, revision)):
            check_options(device, compiled=compiled)
            found = load_exported(place, dtype=arithmetic, upsampled=upsampled)
            return cls(**found.parts, dtype=arithmetic, index=found.index)
        device = dist.device(device) if isinstance(device, str) else device
        model = load_model(place, device, discriminator=False)
        if model.generator is None:
            raise ConfigError(f"{path}: holds an upsampler alone; give it to gigagan upsample --model")
        upsampler = model.upsampler if upsampled else None
        networks = model.generator, model.text_encoder
        about: dict[str, Any] = {"index": model.index, "notice": model.notice}
        return cls(*networks, dtype=arithmetic, compiled=compiled, upsampler=upsampler, **about)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write a model directory with these networks and the text encoder; provenance and credits are kept."""
        check_weights(self.generator, "save_pretrained")
        return save_model(
            Path(path),
            self.generator,
            self.text_encoder,
            provenance=self.index.get("provenance", {}),
            dtype=dtype,
            upsampler=self.upsampler,
            notice=self.notice,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False, dtype: torch.dtype = torch.float32) -> str:
        """Upload what `save_pretrained` writes, card included, to OWNER/NAME of the hub, made where it isn't there.

        Returns OWNER/NAME@COMMIT, which `from_pretrained` takes. The token is that of `hf auth login` or HF_TOKEN.
        Raises CheckpointError where the hub refuses or can't be reached.
        """
        check_hub_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            return push(self.save_pretrained(Path(folder) / "model", dtype=dtype), repo_id, private=private)

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.generator.mapping.w_avg.device

    @property
    def resolution(self) -> int:
        """Side of a prompt's pictures: the upsampler's where there is one."""
        return self.generator.cfg.resolution if self.upsampler is None else self.upsampler.cfg.resolution

    @property
    def model_hash(self) -> str:
        """As `checkpoint.model_hash`; empty for a model that never was in a directory."""
        return hash_of_parts(self.index["sha256"]) if "sha256" in self.index else ""

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        seeds: int | Iterable[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        truncation_psi: float = DEFAULT_PSI,
        output_type: OutputType = "pil",
    ) -> PipelineOutput:
        """Draw each prompt: a text, a class where the model knows classes, nothing where it is unconditional.

        `seeds` (0 ... 2**63 - 1) holds one for each picture, in the order of the output; for one prompt their number
        is the number of pictures. Without them they are drawn, from `generator` (one, or one a picture) where it is
        given, and reported.
        `truncation_psi` in [0, 1]: 1 draws from all that was learned, less gives more typical pictures, and at 0 every
        seed of a prompt gives the same one (paper 9).

        Raises PromptError for an empty prompt or an unknown class, ConfigError for seeds or a psi that can't be.
        """
        prompts = self.check(prompt)
        psi = check_psi(truncation_psi)
        if output_type not in ("pil", "np", "pt"):
            raise ConfigError(f"output_type is {output_type!r}; use pil, np or pt")
        prompts, numbers = pair_with_seeds(prompts, seeds, generator, num_images_per_prompt)

        size = self.micro_batch
        pyramids = [
            self.draw(self.latents(prompts[start : start + size], self.z(numbers[start : start + size]), psi))
            for start in range(0, len(prompts), size)
        ]
        pyramid = [torch.cat(levels) for levels in zip(*pyramids, strict=True)]
        warnings = [message for p in dict.fromkeys(prompts) if (message := self.cut(p))]
        return PipelineOutput(_as_type(pyramid[0], output_type), prompts, numbers, psi, pyramid, warnings)

    def z(self, seeds: Iterable[int]) -> Tensor:
        """The latents [N, Z] of seeds. Raises ConfigError for a seed that can't be."""
        return torch.cat([latent(check_seed(seed), self._drawing.cfg.z_dim) for seed in seeds]).to(self.device)

    @torch.inference_mode()
    def latents(self, prompts: Sequence[str], z: Tensor, psi: float = DEFAULT_PSI) -> Latents:
        """The points that `draw` draws: prompt n with z[n], truncated. The prompts aren't checked (`check`)."""
        assert len(prompts) == len(z) > 0, (len(prompts), len(z))
        encoded = [self._encode(p) for p in prompts]
        condition = TextCondition(
            torch.cat([p.condition.t_local for p in encoded]),
            torch.cat([p.condition.mask for p in encoded]),
            torch.cat([p.condition.t_global for p in encoded]),
        )
        w_mean = torch.cat([p.w_mean for p in encoded])
        mapping = self._drawing.mapping
        ws = [mapping(*part) for part in self._micro_batches(z, condition.t_global)]
        w = truncate(torch.cat(ws)[: len(z)], w_mean, mapping.w_avg, psi)
        point = Latents.everywhere(w, condition, self._drawing.num_ws)
        if self._second is None:
            return point
        return replace(point, enlarged=self._second.latents(z, [p.enlarged for p in encoded if p.enlarged is not None]))

    @torch.inference_mode()
    def draw(self, latents: Latents) -> list[Tensor]:
        """The pyramid of each point, uint8 [N, 3, r, r] on the CPU, index 0 = full resolution; raises as `finite`.

        Points that hold the upsampler's part are drawn by both networks, `latents.base` by the generator alone.
        """
        pyramids = [
            [to_uint8(finite(level)).cpu() for level in self._synthesize(*part, dtype=self.dtype)]
            for part in self._micro_batches(latents.ws, latents.t_local, latents.mask)
        ]
        pyramid = [torch.cat(levels)[: len(latents)] for levels in zip(*pyramids, strict=True)]
        if latents.enlarged is None:
            return pyramid
        assert self._second is not None, "these points come from a model with an upsampler"
        large = self._second(to_float(pyramid[0]).to(self.device), latents.enlarged)
        return [to_uint8(finite(level)).cpu() for level in large] + pyramid

    def _micro_batches(self, *tensors: Tensor) -> Iterator[list[Tensor]]:
        """Tensors in parts of `micro_batch` rows, the last padded with its last row."""
        size = self.micro_batch
        for start in range(0, len(tensors[0]), size):
            part = [x[start : start + size] for x in tensors]
            short = size - len(part[0])
            yield [torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x for x in part]

    def check(self, prompt: str | Sequence[str] | None) -> list[str]:
        """The prompts as a list; of an unconditional model empty ones. Raises PromptError where they can't be."""
        if self.text_encoder.name == "none":
            given = [""] if not prompt else [prompt] if isinstance(prompt, str) else list(prompt)
            if any(given):
                raise PromptError("this model is unconditional and takes no prompt; leave it out or empty")
            return given
        return check_prompts([] if prompt is None else prompt)

    def read(self, prompt: str) -> None:
        """Encode a prompt ahead of `latents`, which then finds it. Raises PromptError where it can't be read."""
        self._encode(prompt)

    def info(self, prompt: str, seed: int, psi: float, resolution: int) -> PictureInfo:
        """What a picture's file shall say of it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return PictureInfo(prompt, seed, psi, self.model_hash, dtype, self.device.type, resolution)

    def cut(self, prompt: str) -> str:
        """What to say of a prompt that is longer than the encoder takes; empty where it isn't."""
        count, most = self.text_encoder.count_tokens(prompt), self.text_encoder.max_tokens
        if count <= most:
            return ""
        short = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
        return f"{short!r} has {count} tokens, the text encoder takes {most}: the last {count - most} were dropped"

    def upsample(
        self, image: Image.Image, *, scale: int = 0, to: int = 0, prompt: str = "", seed: int = 0, noise: float = 0.0
    ) -> Image.Image:
        """A picture of any size `scale` times as large (2, 4, 8 ...), or with a longer side of `to` pixels.

        Without either by the upsampler's own factor. Orientation is followed; gray, 16-bit gray, alpha, profile and
        EXIF are kept. Raises ConfigError where the model has no upsampler, DataError where the picture can't be used.
        """
        if self.enlarger is None:
            check_weights(self.generator, "upsample")
            raise ConfigError("this model holds no upsampler; load one that does")
        request = Request(prompt, check_seed(seed), noise)
        self.enlarger.check(request)
        return upsampled_picture(self.enlarger, as_photo(image), scale, to, request)

    def _encode(self, prompt: str) -> _Prompt:
        """Text condition and conditional mean of a prompt, kept for the last CACHED_PROMPTS prompts."""
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
            return self._prompts[prompt]
        with torch.inference_mode():
            features = self.text_encoder.encode([prompt]).to(self.device)
            condition: TextCondition = self._drawing.text(features)
            z = latent(MEAN_SEED, self._drawing.cfg.z_dim, count=MEAN_SAMPLES).to(self.device)
            w = self._drawing.mapping(z, condition.t_global.expand(MEAN_SAMPLES, -1))
            enlarged = None if self._second is None else self._second.text(features)
        encoded = _Prompt(condition, w.mean(dim=0, keepdim=True), enlarged)
        self._prompts[prompt] = encoded
        if len(self._prompts) > CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        return encoded


def latent(seed: int, z_dim: int, *, count: int = 1) -> Tensor:
    """z ~ N(0, I) [count, z_dim] of a seed, drawn on the CPU: the same on every device."""
    return torch.randn(count, z_dim, generator=torch.Generator().manual_seed(seed))


def to_pil(img: Tensor) -> list[Image.Image]:
    """Pictures of uint8 [N, 3, H, W]."""
    return [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in img]


def _as_type(img: Tensor, output_type: OutputType) -> Any:
    if output_type == "pil":
        return to_pil(img)
    scaled = img.to(torch.float32) / 255
    return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).contiguous().numpy()
