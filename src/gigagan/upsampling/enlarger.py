"""One picture of any size through the upsampler, in parts, with a bounded amount of memory and without a seam.

A picture has one style, so the network is baked for it once. What stands below the picture's own side (`look`) runs
once on the whole of it, or above LOOK_PIXELS on blocks with as much around each as it reaches; what stands above
(`draw`) is convolutional and runs on tiles with its own, short reach around each. So parts and whole agree to rounding.
Axes: H and W of the picture that comes in.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gigagan.errors import ConfigError
from gigagan.models.baked import baked
from gigagan.models.frozen import TextEncoder
from gigagan.models.layers import EqualConv, EqualLinear
from gigagan.models.text import TextCondition
from gigagan.models.upsampler import STRIDE, Upsampler, draw_reach, look_reach, with_level

LOOK_PIXELS = 640 * 640
"""Pixels that `look` takes at once: with its reach around a block, about 0.9 GB in float32 for the shipped model."""
LEAST_BLOCK = 4
"""A block without what is around it is at least so many half windows wide, whatever memory it takes."""
BAND_BYTES = 192 * 2**20
"""At most so much of the result is held until its rows are whole."""
TILE = 1024
"""Side of a tile of `draw` in pixels of the result: its maps take some 0.3 GB, its surroundings a sixth of the work."""
Progress = Callable[[int], object]
"""Called with the number of input pixels that are done now."""


class Source(Protocol):
    """A picture that is read in parts."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    def read(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "3 h w"]:
        """A rectangle within the picture, in [-1, 1]."""


class Rows:
    """A source in memory."""

    def __init__(self, img: Float[Tensor, "3 H W"]) -> None:
        self.img = img

    @property
    def height(self) -> int:
        """In pixels."""
        return self.img.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.img.shape[2]

    def read(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "3 h w"]:
        """The rectangle."""
        return self.img[:, top:bottom, left:right]


@dataclass(frozen=True)
class Request:
    """How a picture is to be drawn larger."""

    prompt: str = ""
    """What it shows; empty where nobody says."""
    seed: int = 0
    """Of the style, and of the noise where there is some."""
    noise: float = 0.0
    """Standard deviation of noise added to the picture first: more hides faults and invents more."""


class Enlarger:
    """An upsampler with the text encoder that it was trained with."""

    def __init__(self, upsampler: Upsampler, text_encoder: TextEncoder, *, dtype: torch.dtype = torch.float32) -> None:
        self.upsampler = upsampler
        self.text_encoder = text_encoder
        self.dtype = dtype
        self._ready: tuple[tuple[str, int], Upsampler, TextCondition, Tensor] | None = None

    @property
    def factor(self) -> int:
        """How many times the side of one pass."""
        return self.upsampler.cfg.factor

    def check(self, request: Request) -> None:
        """Raises ConfigError or PromptError for what the model can't do."""
        most = self.upsampler.cfg.noise_max
        if not 0 <= request.noise <= most:
            raise ConfigError(f"noise is {request.noise}; this model was trained with 0 to {most}")
        if self.text_encoder.name == "none" and request.prompt:
            raise ConfigError("this upsampler takes no prompt; leave it out")
        self.text_encoder.encode([request.prompt])

    def passes(self, scale: int) -> list[int]:
        """Factors of the passes that make a scale, a power of two: the largest first."""
        if scale < 2 or scale & (scale - 1):
            raise ConfigError(f"scale is {scale}; expected a power of two from 2")
        factors = []
        while scale > 1:
            factors.append(min(scale, self.factor))
            scale //= factors[-1]
        return factors

    @torch.inference_mode()
    def bands(
        self, source: Source, scale: int, request: Request, progress: Progress = lambda pixels: None
    ) -> Iterator[Float[Tensor, "3 h W2"]]:
        """The picture `scale` times as large, from the top, some whole rows at a time, in [-1, 1].

        Passes before the last are kept whole.
        """
        *before, last = self.passes(scale)
        for factor in before:
            made = torch.cat(list(self._pass(source, factor, request, progress)), dim=1)
            source, request = Rows(made), Request(request.prompt, request.seed)
        yield from self._pass(source, last, request, progress)

    def _pass(
        self, source: Source, factor: int, request: Request, progress: Progress
    ) -> Iterator[Float[Tensor, "3 h W2"]]:
        network, condition, ws = self._prepared(request.prompt, request.seed)
        run = _Pass(network, condition, ws, source, factor, request, self.dtype)
        for band in run.bands(progress):
            yield band.clamp(-1, 1).cpu()

    def _prepared(self, prompt: str, seed: int) -> tuple[Upsampler, TextCondition, Tensor]:
        """The network baked for a style and a prompt; the last one is kept, as a folder often has one for all."""
        key = (prompt, seed)
        if self._ready is None or self._ready[0] != key:
            G = self.upsampler
            device = G.mapping.w_avg.device
            condition: TextCondition = G.text(self.text_encoder.encode([prompt]).to(device))
            z = torch.randn(1, G.cfg.z_dim, generator=torch.Generator().manual_seed(seed))
            ws = G.mapping(z.to(device), condition.t_global)[:, None].expand(-1, G.num_ws, -1)
            low = with_level(torch.zeros(1, 3, STRIDE, STRIDE, device=device), torch.zeros(1, device=device))
            args = ws, condition.t_local, condition.mask, low, self.dtype
            network = baked(G, lambda copy: copy.synthesis(*args), self.dtype)
            for module in network.synthesis.modules():
                if isinstance(module, EqualConv | EqualLinear):
                    module.prepare(self.dtype)
            self._ready = (key, network, condition, ws)
        return self._ready[1:]


class _Pass:
    """One pass over one picture."""

    def __init__(
        self,
        network: Upsampler,
        condition: TextCondition,
        ws: Tensor,
        source: Source,
        factor: int,
        request: Request,
        dtype: torch.dtype,
    ) -> None:
        self.network, self.source, self.factor, self.request = network, source, factor, request
        self.condition, self.ws, self.dtype = condition, ws, dtype
        self.levels = factor.bit_length() - 1
        # Sides are filled up to multiples of the stride.
        self.height, self.width = (-(-n // STRIDE) * STRIDE for n in (source.height, source.width))

    def bands(self, progress: Progress) -> Iterator[Float[Tensor, "3 h W2"]]:
        """Whole rows from the top."""
        height, width = self.source.height, self.source.width
        for top, bottom, columns in self._blocks():
            parts = [self._block(top, bottom, left, right, progress) for left, right in columns]
            band = torch.cat(parts, dim=2)[:, :, : width * self.factor]
            yield band[:, : (min(bottom, height) - top) * self.factor]

    def _blocks(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Rows of blocks: (top, bottom, the left and right of each), none smaller than need be."""
        step = self.network.cfg.input_resolution // 2
        halo = self._halo()
        pixels = max(LOOK_PIXELS, (2 * halo + LEAST_BLOCK * step) ** 2)
        if self.height * self.width <= pixels:
            yield 0, self.height, [(0, self.width)]
            return
        side = max((math.isqrt(pixels) - 2 * halo) // step, 1) * step
        rows = BAND_BYTES // (12 * self.width * self.factor**2)
        rows = max(min(rows // step * step, side), step)
        # A flat band of blocks may be wider for it.
        columns = max((pixels // (rows + 2 * halo) - 2 * halo) // step, 1) * step
        lefts = [(left, min(left + columns, self.width)) for left in range(0, self.width, columns)]
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height), lefts

    def _halo(self) -> int:
        """What `look` reaches, as a multiple of half a window, so that a block's windows are the picture's."""
        step = self.network.cfg.input_resolution // 2
        return -(-(look_reach(self.network.cfg) + draw_reach(self.network.cfg)) // step) * step

    def _block(self, top: int, bottom: int, left: int, right: int, progress: Progress) -> Float[Tensor, "3 h2 w2"]:
        halo = self._halo()
        outer_top, outer_left = max(top - halo, 0), max(left - halo, 0)
        outer_bottom, outer_right = self._outer(bottom, halo, self.height), self._outer(right, halo, self.width)
        low = self._read(outer_top, outer_bottom, outer_left, outer_right)
        args = self.ws, self.condition.t_local, self.condition.mask
        x = self.network.synthesis.look(*args, low, self.dtype)
        inside = (top - outer_top, bottom - outer_top, left - outer_left, right - outer_left)
        return self._draw(x, low[:, :3], inside, progress)

    def _outer(self, end: int, halo: int, length: int) -> int:
        """Where a block with its surroundings ends: on the grid of half windows, or with the picture."""
        step = self.network.cfg.input_resolution // 2
        return min(-(-end // step) * step + halo, length)

    def _draw(
        self, x: Tensor, low: Tensor, inside: tuple[int, int, int, int], progress: Progress
    ) -> Float[Tensor, "3 h2 w2"]:
        """The pixels over a rectangle of a map, tile by tile."""
        top, bottom, left, right = inside
        factor, reach, side = self.factor, draw_reach(self.network.cfg), max(TILE // self.factor, STRIDE)
        made = torch.empty(3, (bottom - top) * factor, (right - left) * factor, device=low.device)
        args = self.ws, self.condition.t_local, self.condition.mask
        for y in range(top, bottom, side):
            for x0 in range(left, right, side):
                y1, x1 = min(y + side, bottom), min(x0 + side, right)
                y_out, x_out = max(y - reach, 0), max(x0 - reach, 0)
                part = (slice(None), slice(None), slice(y_out, y1 + reach), slice(x_out, x1 + reach))
                tile = self.network.synthesis.draw(x[part], *args, low[part], self.levels)[0][0]
                rows = slice((y - y_out) * factor, (y1 - y_out) * factor)
                columns = slice((x0 - x_out) * factor, (x1 - x_out) * factor)
                made[:, (y - top) * factor : (y1 - top) * factor, (x0 - left) * factor : (x1 - left) * factor] = tile[
                    :, rows, columns
                ]
                progress((y1 - y) * (x1 - x0))
        return made

    def _read(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "1 4 h w"]:
        """The small picture's rectangle as the network takes it; past the picture's end its last pixels again."""
        source = self.source
        img = source.read(top, min(bottom, source.height), left, min(right, source.width))[None].to(self.ws.device)
        missing = (0, right - left - img.shape[3], 0, bottom - top - img.shape[2])
        img = F.pad(img.to(torch.float32), missing, mode="replicate") if any(missing) else img.to(torch.float32)
        level = self.request.noise
        if level:
            img = img + level * self._noise(top, bottom, left, right).to(img)
        return with_level(img, torch.tensor([level], device=img.device))

    def _noise(self, top: int, bottom: int, left: int, right: int) -> Float[Tensor, "3 h w"]:
        """Unit noise: each row of the picture has its own seed, so that parts have the whole's."""
        rows = []
        for y in range(top, bottom):
            generator = torch.Generator().manual_seed((self.request.seed * 2**20 + y) % 2**63)
            rows.append(torch.randn(3, self.width, generator=generator)[:, left:right])
        return torch.stack(rows, dim=1)
