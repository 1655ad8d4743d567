"""What the tabs ask of the model, without a page: requests in, files out that say how to draw them again."""

import copy
import dataclasses
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from gigagan.editing import Key, film, mix, move, plane, principal_directions, timeline
from gigagan.editing.films import num_frames
from gigagan.editing.video import check_video, write_video
from gigagan.errors import ConfigError
from gigagan.grid import check_size, grid_size, labelled_grid
from gigagan.metadata import FilmInfo, PictureInfo, png_bytes, sheet_bytes
from gigagan.models.latents import Latents
from gigagan.pipeline import Pipeline, to_pil
from gigagan.request import check_psi, check_seed
from gigagan.studio.inputs import filled
from gigagan.studio.shelf import Shelf
from gigagan.studio.turns import Turns
from gigagan.upsampling import files
from gigagan.upsampling.enlarger import Request
from gigagan.upsampling.formats import eight_bits

MAX_PICTURES = 64
MAX_FRAMES = 600
MAX_UPSAMPLED = 4096 * 4096
MAX_PLANES = 64
DIRECTION_SAMPLES = 200
DIRECTION_REACH = 2.5  # standard deviations from the middle of the plane to its border

T = TypeVar("T")


@dataclass(frozen=True)
class Plane:
    """What the pointer moves in: four corners, or a start and two steps."""

    points: list[Latents]
    made_of: PictureInfo
    """Of the first point; the edit of a place in the plane lacks the place."""
    edit: dict[str, object]
    steps: Tensor | None = None
    """[2, S]; None where the points are four corners."""

    def at(self, x: float, y: float) -> tuple[Latents, PictureInfo]:
        """The point of a place in [0, 1]^2, y downward, and what its picture shall say."""
        info = dataclasses.replace(self.made_of, edit=_said({**self.edit, "x": x, "y": y}))
        if self.steps is None:
            return plane(self.points, x, y), info
        across, down = (DIRECTION_REACH * (2 * share - 1) for share in (x, y))
        return move(move(self.points[0], self.steps[0], across), self.steps[1], down), info


class Desk:
    """One model and a shelf of files; requests take turns at the model, a micro-batch each."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        """`folder`: for the shelf, which nobody else writes in."""
        self.pipe = pipe
        # A frame lives for a moment: its last bits may depend on what it is drawn with, and a lone one costs half.
        self._frames = copy.copy(pipe)
        self._frames.micro_batch = 1
        self.shelf = Shelf(folder)
        self._turns = Turns()
        self._enlarging = threading.Lock()
        self._nonce = secrets.token_hex(8)
        self._held = threading.Lock()
        self._planes: OrderedDict[str, Plane] = OrderedDict()  # least recently used first

    @property
    def num_layers(self) -> int:
        """Style layers, of which a mix takes the first from one prompt."""
        return self.pipe.generator.num_ws

    def cut(self, prompts: Iterable[str]) -> str:
        """What to say of prompts that are longer than the encoder takes, one line; empty where none is.

        Raises PromptError where one can't be.
        """
        checked = dict.fromkeys(self._prompt(prompt) for prompt in prompts if prompt.strip())
        messages = [message for prompt in checked if (message := self.pipe.cut(prompt))]
        others = f"; {len(messages) - 1} more are too long, too" if len(messages) > 1 else ""
        return messages[0] + others if messages else ""

    def pictures(self, prompt: str, seeds: Sequence[int], psi: float) -> list[Path]:
        """A file for each seed, of the generator alone. Raises PromptError and ConfigError as the pipeline does."""
        if not 0 < len(seeds) <= MAX_PICTURES:
            raise ConfigError(f"{len(seeds)} pictures came; expected 1 to {MAX_PICTURES} at once")
        return self._pictures(prompt, seeds, psi, large=False)

    def full_size(self, prompt: str, seed: int, psi: float) -> Path:
        """One of `pictures` drawn as large as the model can."""
        (path,) = self._pictures(prompt, [seed], psi, large=self.pipe.upsampler is not None)
        return path

    def mixes(self, coarse: str, fine: str, seed: int, psi: float) -> list[Path]:
        """A file for each boundary, from all fine to all coarse."""
        first, second = self._prompt(coarse), self._prompt(fine)
        made_of = self._info(first, seed, psi)

        def about(layer: int) -> tuple[str, PictureInfo]:
            edit = {"edit": "mix", "fine": second, "fine_seed": seed, "layer": layer}
            return f"mix-{layer}.png", dataclasses.replace(made_of, edit=_said(edit))

        def points_of(layers: Sequence[int]) -> Latents:
            a, b = (self._point(prompt, seed, psi) for prompt in (first, second))
            return Latents.join([mix(a, b, layer) for layer in layers])

        return self._shelved(range(self.num_layers + 1), about, points_of)

    def explore(self, prompts: Sequence[str], seed: int, psi: float, *, directions: bool) -> str:
        """The name of a plane: between four prompts, or along the two directions in which the prompts differ most."""
        texts = self._prompts(prompts) if directions else [self._prompt(prompt) for prompt in prompts]
        # A browser keeps frames by their plane's name for a while, from one studio at an address to the next.
        made_of = [self._nonce, self.pipe.model_hash, texts, seed, psi, directions]
        name = sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        if self._plane(name) is None:
            with self._turns.take():
                made = self._planned(texts, seed, psi, directions=directions)
            with self._held:
                self._planes[name] = made
                while len(self._planes) > MAX_PLANES:
                    self._planes.popitem(last=False)
        return name

    def frame(self, name: str, x: float, y: float, size: int) -> bytes:
        """The generator's picture of a place in a plane as PNG; of a larger `size` the model's largest, enlarged.

        Raises ConfigError for a plane that is gone.
        """
        found = self._plane(name)
        if found is None:
            raise ConfigError("this plane is gone; set it anew")
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ConfigError(f"({x:g}, {y:g}) isn't in the plane; expected numbers from 0 to 1")
        point, info = found.at(x, y)
        large = size > self.pipe.generator.cfg.resolution
        with self._turns.take():
            (image,) = to_pil((self.pipe.draw(point) if large else self._frames.draw(point.base))[0])
        info = dataclasses.replace(info, resolution=image.width)
        return png_bytes(image if image.width >= size else _resized(image, size, size), info, level=1)

    def table(self, prompts: Sequence[str], styles: Sequence[str], seed: int, psi: float) -> Path:
        """A sheet of things down and styles across; a style holds {} where the thing goes."""
        texts = [self._prompt(prompt) for prompt in filled(prompts, styles)]
        check_size(grid_size(len(prompts), len(styles), self.pipe.resolution), "give fewer things or styles")
        z, psi = self.pipe.z([seed]), check_psi(psi)
        said = {"prompts": "\n".join(texts), "seeds": str(seed), "psi": str(psi), "model": self.pipe.model_hash}

        def write(path: Path) -> None:
            each = self._drawn(texts, lambda part: self.pipe.latents(part, z.expand(len(part), -1), psi))
            rows = [[next(each) for _ in styles] for _ in prompts]
            path.write_bytes(sheet_bytes(labelled_grid(rows, prompts, styles), said))

        return self.shelf.keep("table.png", said, prompts, styles, write=write)

    def film(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        psi: float,
        *,
        seconds: float,
        fps: float,
        loop: bool,
        kind: str,
    ) -> Path:
        """A film from each prompt to the next, or from each seed of one to the next."""
        texts = self._prompts(prompts)
        counts = len(texts), len(seeds)
        count = max(counts)
        if min(counts) not in (1, count):
            raise ConfigError(f"{counts[0]} prompts and {counts[1]} seeds came; give one seed, or one for each prompt")
        keys = [Key(texts[n % len(texts)], seeds[n % len(seeds)]) for n in range(count)]
        steps = max(1, round(seconds * fps))
        if (frames := num_frames(count, steps, loop=loop)) > MAX_FRAMES:
            raise ConfigError(f"{frames} frames are more than {MAX_FRAMES}; use gigagan video for longer films")
        moments = timeline(keys, steps, loop=loop, easing="smooth")
        side = max(self.pipe.resolution, 4 * self.pipe.generator.cfg.resolution)
        name = f"film.{kind}"
        check_video(Path(name), fps=fps, size=side, count=frames)
        psi = check_psi(psi)
        texts, numbers = [key.prompt for key in keys], [key.seed for key in keys]
        about = FilmInfo(texts, numbers, psi, seconds, fps, loop, "smooth", self.pipe.model_hash)

        def write(path: Path) -> None:
            drawn = self._in_turns(film(self.pipe, moments, psi=psi))
            write_video(path, (_resized(image, side, side) for image in drawn), count=frames, about=about)

        return self.shelf.keep(name, about, write=write)

    def upsampled(self, picture: Path, scale: int, prompt: str, seed: int) -> tuple[Path, Path]:
        """The picture enlarged by Lanczos, to compare, and `scale` times as large by the model.

        Raises ConfigError where the model has no upsampler, DataError where the picture can't be used.
        """
        if self.pipe.enlarger is None:
            raise ConfigError("this model holds no upsampler; start the studio with one that does")
        request = Request(prompt.strip(), check_seed(seed))
        self.pipe.enlarger.check(request)
        job = files.Job(picture, Path(f"{picture.stem}-{scale}x.png"))
        photo, size = files.planned(job, scale=scale, longest=0)
        if size.width * size.height > MAX_UPSAMPLED:
            raise ConfigError(
                f"{size.width} x {size.height} px are more than {MAX_UPSAMPLED:,}; use gigagan upsample for larger ones"
            )
        made_of = sha256(picture.read_bytes()).hexdigest(), scale
        said = {"prompt": request.prompt, "seed": str(seed), "noise": str(request.noise), "model": self.pipe.model_hash}
        enlarger = self.pipe.enlarger

        def write(path: Path) -> None:
            with self._enlarging:
                files.run(files.Job(picture, path), photo, size, enlarger, request, said, lambda pixels: None)

        shown = _resized(eight_bits(photo.image).convert("RGB"), size.width, size.height)
        plain = self.shelf.keep("lanczos.png", *made_of, write=partial(shown.save, compress_level=1))
        return plain, self.shelf.keep(job.target.name, *made_of, request, write=write)

    def _prompt(self, prompt: str) -> str:
        (checked,) = self.pipe.check(prompt)
        return checked

    def _prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those that hold something; one empty one where none does, which an unconditional model takes."""
        return [self._prompt(prompt) for prompt in [prompt for prompt in prompts if prompt.strip()] or [""]]

    def _point(self, prompt: str, seed: int, psi: float) -> Latents:
        return self.pipe.latents([prompt], self.pipe.z([seed]), check_psi(psi))

    def _plane(self, name: str) -> Plane | None:
        with self._held:
            if name in self._planes:
                self._planes.move_to_end(name)
            return self._planes.get(name)

    def _planned(self, prompts: Sequence[str], seed: int, psi: float, *, directions: bool) -> Plane:
        corners = [self._point(prompt, seed, psi) for prompt in prompts]
        made_of = self._info(prompts[0], seed, psi)
        if not directions:
            return Plane(corners, made_of, {"edit": "grid", "corners": prompts[1:]})
        each = -(-DIRECTION_SAMPLES // len(prompts))
        z = self.pipe.z(range(each))
        w = torch.cat([self.pipe.latents([prompt] * each, z, 1.0).ws[:, 0] for prompt in prompts])
        return Plane(corners[:1], made_of, {"edit": "directions", "prompts": prompts}, principal_directions(w, 2))

    def _info(self, prompt: str, seed: int, psi: float) -> PictureInfo:
        return self.pipe.info(prompt, seed, psi, self.pipe.resolution)

    def _pictures(self, prompt: str, seeds: Sequence[int], psi: float, *, large: bool) -> list[Path]:
        prompt, psi = self._prompt(prompt), check_psi(psi)
        side = self.pipe.resolution if large else self.pipe.generator.cfg.resolution

        def points_of(part: Sequence[int]) -> Latents:
            found = self.pipe.latents([prompt] * len(part), self.pipe.z(part), psi)
            return found if large else found.base

        return self._shelved(
            seeds, lambda seed: (f"seed-{seed}.png", self.pipe.info(prompt, seed, psi, side)), points_of
        )

    def _shelved(
        self,
        items: Sequence[int],
        about: Callable[[int], tuple[str, PictureInfo]],
        points_of: Callable[[Sequence[int]], Latents],
    ) -> list[Path]:
        """A file for each item, by its name and what it says; those that aren't on the shelf are drawn."""
        found = {item: self.shelf.find(*about(item)) for item in items}
        missing = [item for item, path in found.items() if path is None]
        for item, image in zip(missing, self._drawn(missing, points_of), strict=True):
            name, info = about(item)
            found[item] = self.shelf.keep(name, info, write=partial(Path.write_bytes, data=png_bytes(image, info)))
        return [path for item in items if (path := found[item]) is not None]

    def _drawn(self, items: Sequence[T], points_of: Callable[[Sequence[T]], Latents]) -> Iterator[Image.Image]:
        """A picture of each item; others have their turn after each micro-batch."""
        for start in range(0, len(items), self.pipe.micro_batch):
            with self._turns.take():
                img = self.pipe.draw(points_of(items[start : start + self.pipe.micro_batch]))[0]
            yield from to_pil(img)

    def _in_turns(self, parts: Iterator[Tensor]) -> Iterator[Image.Image]:
        """The same of pictures that are drawn as they are asked for."""
        while True:
            with self._turns.take():
                img = next(parts, None)
            if img is None:
                return
            yield from to_pil(img)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _said(edit: dict[str, object]) -> str:
    return json.dumps(edit, ensure_ascii=False)
