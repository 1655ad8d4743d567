"""One picture of any size through the upsampler, in parts, with a bounded amount of memory and without a seam.

A picture has one style, so the network is baked for it once. Its deepest levels reach far on small maps (`attend`),
and run once on the whole picture or, above ATTEND_PIXELS, on blocks with as much around each as they reach; those at
the picture's own side and above (`descend`, `ascend`, `draw`) are convolutional and run on tiles with their own, short
reach around each. So parts and whole agree to rounding. Axes: H and W of the picture that comes in.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gigagan.allocator import return_memory
from gigagan.config.networks import UPSAMPLER_DOWNS
from gigagan.errors import ConfigError
from gigagan.models.baked import baked
from gigagan.models.frozen import TextEncoder
from gigagan.models.layers import EqualConv, EqualLinear
from gigagan.models.text import TextCondition
from gigagan.models.upsampler import STRIDE, Upsampler, reach, with_level
from gigagan.request import check_prompts

WHOLE_PIXELS = 640 * 640
"""A picture up to so many pixels is taken whole: about 0.9 GB in float32 for the shipped model."""
ATTEND_PIXELS = 1024 * 1024
"""Pixels of the picture whose deepest maps are there at once, with what a block reaches: 0.5 GB in float32."""
LOOK_SIDE = 224
"""Side of a tile at the picture's own side."""
LEAST_BLOCK = 4
"""A block without what is around it is at least so many half windows wide, whatever memory it takes."""
BAND_BYTES = 192 * 2**20
"""At most so much of the result is held until its rows are whole."""
TILE = 1024
"""Side of a tile of `draw` in pixels of the result: its maps take some 0.3 GB, its surroundings a sixth of the work."""
Progress = Callable[[int], object]
"""Called with the number of input pixels that are done now; often with 0, so that it can end the work by raising."""


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
        if request.prompt.strip():  # nobody has to say what a picture shows
            check_prompts(request.prompt)
        self.text_encoder.encode([request.prompt])

    def work(self, width: int, height: int, scale: int) -> int:
        """Pixels that go into the passes, as Progress counts them: with those that fill up the sides."""
        total = 0
        for factor in self.passes(scale):
            total += _multiple(width, STRIDE) * _multiple(height, STRIDE)
            width, height = width * factor, height * factor
        return total

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
            yield band.clamp_(-1, 1).cpu()
            del band

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


def _multiple(number: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-number // step) * step


@dataclass(frozen=True)
class Area:
    """A rectangle of the picture that comes in, in its pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    def tiles(self, side: int) -> list[list["Area"]]:
        """Rows of squares of this side that fill it, smaller at its end."""
        return [
            [
                Area(y, min(y + side, self.bottom), x, min(x + side, self.right))
                for x in range(self.left, self.right, side)
            ]
            for y in range(self.top, self.bottom, side)
        ]

    def of(self, x: Tensor, outer: "Area", pixels: float = 1) -> Tensor:
        """This part of a map [B, C, h, w] over another area, one of whose places is so many pixels of the picture."""
        top, left = (int(n / pixels) for n in (self.top - outer.top, self.left - outer.left))
        return x[:, :, top : top + int(self.height / pixels), left : left + int(self.width / pixels)]


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
        self.args, self.ws, self.dtype = (ws, condition.t_local, condition.mask), ws, dtype
        self.levels = factor.bit_length() - 1
        # Sides are filled up to multiples of the stride.
        self.height, self.width = (_multiple(n, STRIDE) for n in (source.height, source.width))
        self.whole = self.height * self.width <= WHOLE_PIXELS
        self.reach = reach(network.cfg)
        self.scale = 1 << (UPSAMPLER_DOWNS + 1 - network.synthesis.deep)
        """Pixels of the picture for one of the deepest levels' largest map."""
        self.step = network.cfg.input_resolution // 2
        # As a multiple of half a window, so that a block's windows are the picture's.
        around = self.reach.attend + _multiple(self.reach.ascend + self.reach.draw, STRIDE)
        self.halo = _multiple(around, self.step)
        self._whole: tuple[Tensor, list[Tensor]] | None = None

    def bands(self, progress: Progress) -> Iterator[Float[Tensor, "3 h W2"]]:
        """Whole rows from the top."""
        height, width = self.source.height, self.source.width
        for top, bottom, columns in self._blocks():
            band = torch.empty(3, (bottom - top) * self.factor, self.width * self.factor, device=self.ws.device)
            for left, right in columns:
                made = self._block(Area(top, bottom, left, right), progress)
                band[:, :, left * self.factor : right * self.factor] = made
                if not self.whole:
                    del made
                    return_memory()
            yield band[:, : (min(bottom, height) - top) * self.factor, : width * self.factor]
            del band  # the next one takes its place

    def _blocks(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Rows of blocks: (top, bottom, the left and right of each), none smaller than need be."""
        if self.whole:
            yield 0, self.height, [(0, self.width)]
            return
        # Where attention is at the picture's own side, its maps are as large as those of a whole picture.
        most = ATTEND_PIXELS if self.scale > 1 else WHOLE_PIXELS
        pixels = max(most, (2 * self.halo + LEAST_BLOCK * self.step) ** 2)
        side = max((math.isqrt(pixels) - 2 * self.halo) // self.step, 1) * self.step
        rows = BAND_BYTES // (12 * self.width * self.factor**2)
        rows = max(min(rows // self.step * self.step, side), self.step)
        # A flat band of blocks may be wider for it.
        columns = max((pixels // (rows + 2 * self.halo) - 2 * self.halo) // self.step, 1) * self.step
        lefts = [(left, min(left + columns, self.width)) for left in range(0, self.width, columns)]
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height), lefts

    def _block(self, block: Area, progress: Progress) -> Float[Tensor, "3 h2 w2"]:
        """The pixels over a block: its deepest maps with what is around them, then tile by tile."""
        outer = self._around(block, self.halo)
        side = max(self.height, self.width) if self.whole else LOOK_SIDE
        deep = torch.cat(
            [torch.cat([self._descended(t, outer, progress) for t in row], dim=3) for row in outer.tiles(side)], dim=2
        )
        deep = self.network.synthesis.attend(deep, *self.args)
        progress(0)
        if not self.whole:
            return_memory()  # the tiles' maps don't fit into the gaps that the large ones left
        rows = []
        for row in block.tiles(side):
            rows.append(torch.cat([self._tile(tile, deep, outer, progress) for tile in row], dim=2))
        return torch.cat(rows, dim=1)

    def _descended(self, tile: Area, outer: Area, progress: Progress) -> Float[Tensor, "1 C h w"]:
        """The map that the deepest levels are given, over a tile of a block and what is around it."""
        progress(0)
        seen = self._around(tile, _multiple(self.reach.descend, STRIDE))
        return tile.of(self._descend(seen)[0], seen, self.scale)

    def _tile(self, tile: Area, deep: Tensor, outer: Area, progress: Progress) -> Float[Tensor, "3 h2 w2"]:
        """The pixels over a tile, given the deepest maps of its block."""
        around = self._around(tile, _multiple(self.reach.ascend + self.reach.draw, STRIDE))
        seen = self._around(around, _multiple(self.reach.descend, STRIDE))
        skips = [around.of(skip, seen, 1 << i) for i, skip in enumerate(self._descend(seen)[1])]
        progress(0)
        x = self.network.synthesis.ascend(around.of(deep, outer, self.scale), skips, *self.args)
        progress(0)
        return self._draw(x, self._read(around)[:, :3], tile, around, progress)

    def _descend(self, seen: Area) -> tuple[Tensor, list[Tensor]]:
        """The encoder's first levels over an area; of a whole picture once."""
        if self._whole is not None:
            return self._whole
        found: tuple[Tensor, list[Tensor]] = self.network.synthesis.descend(self._read(seen), self.dtype)
        if self.whole:
            self._whole = found
        return found

    def _around(self, area: Area, halo: int) -> Area:
        """An area with what is around it, as far as there is picture."""
        return Area(
            max(area.top - halo, 0),
            min(area.bottom + halo, self.height),
            max(area.left - halo, 0),
            min(area.right + halo, self.width),
        )

    def _draw(self, x: Tensor, low: Tensor, inside: Area, around: Area, progress: Progress) -> Float[Tensor, "3 h2 w2"]:
        """The pixels over the inside of a map, in tiles."""
        side = max(TILE // self.factor, STRIDE)
        rows = []
        for row in inside.tiles(side):
            made = []
            for tile in row:
                seen = self._around(tile, self.reach.draw)
                part = seen.of(x, around), *self.args, seen.of(low, around), self.levels
                made.append(tile.of(self.network.synthesis.draw(*part)[0], seen, 1 / self.factor)[0])
                progress(tile.height * tile.width)
            rows.append(torch.cat(made, dim=2))
        return torch.cat(rows, dim=1)

    def _read(self, area: Area) -> Float[Tensor, "1 4 h w"]:
        """The small picture's rectangle as the network takes it; past the picture's end its last pixels again."""
        source = self.source
        bottom, right = min(area.bottom, source.height), min(area.right, source.width)
        img = source.read(area.top, bottom, area.left, right)[None].to(self.ws.device)
        missing = (0, area.width - img.shape[3], 0, area.height - img.shape[2])
        img = F.pad(img.to(torch.float32), missing, mode="replicate") if any(missing) else img.to(torch.float32)
        level = self.request.noise
        if level:
            img = img + level * self._noise(area).to(img)
        return with_level(img, torch.tensor([level], device=img.device))

    def _noise(self, area: Area) -> Float[Tensor, "3 h w"]:
        """Unit noise: each row of the picture has its own seed, so that parts have the whole's."""
        rows = []
        for y in range(area.top, area.bottom):
            generator = torch.Generator().manual_seed((self.request.seed * 2**20 + y) % 2**63)
            rows.append(torch.randn(3, self.width, generator=generator)[:, area.left : area.right])
        return torch.stack(rows, dim=1)
