"""What the tabs ask of the model, without a page: requests in, files out that say how to draw them again."""

import copy
import dataclasses
import hashlib
import io
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gigagan.editing import Key, film, mix, move, plane, principal_directions
from gigagan.editing.film import timeline
from gigagan.editing.video import check_video, write_video
from gigagan.errors import ConfigError, PromptError
from gigagan.grid import labelled_grid
from gigagan.metadata import PictureInfo, png_bytes, read_info, sheet_bytes
from gigagan.models.latents import Latents
from gigagan.pipeline import Pipeline, to_pil
from gigagan.request import check_psi, check_seed
from gigagan.upsampling import files
from gigagan.upsampling.enlarger import Request
from gigagan.upsampling.formats import eight_bits

MAX_PICTURES = 64
MAX_FRAMES = 600
MAX_FILES = 2000
MAX_UPSAMPLED = 4096 * 4096
MAX_PLANES = 64
DIRECTION_SAMPLES = 200
DIRECTION_REACH = 2.5  # standard deviations from the middle of the plane to its border


@dataclass(frozen=True)
class Plane:
    """What the pointer moves in: four corners, or a start and two steps."""

    points: list[Latents]
    steps: Tensor | None = None
    """[2, S]; None where the points are four corners."""

    def at(self, x: float, y: float) -> Latents:
        """The point of a place in [0, 1]^2, y downward."""
        if self.steps is None:
            return plane(self.points, x, y)
        across, down = (DIRECTION_REACH * (2 * share - 1) for share in (x, y))
        return move(move(self.points[0], self.steps[0], across), self.steps[1], down)


class Desk:
    """One model and a folder of files; requests wait for each other, a micro-batch of a film at a time."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        self.pipe = pipe
        # A frame lives for a moment: its last bits may depend on what it is drawn with, and a lone one costs half.
        self._frames = copy.copy(pipe)
        self._frames.micro_batch = 1
        self.folder = folder
        self._turn = threading.Lock()
        self._enlarging = threading.Lock()
        self._files: deque[Path] = deque()
        self._planes: OrderedDict[str, Plane] = OrderedDict()

    @property
    def num_layers(self) -> int:
        """Style layers, of which a mix takes the first from one prompt."""
        return self.pipe.generator.num_ws

    def pictures(self, prompt: str, seeds: Sequence[int], psi: float) -> list[Path]:
        """A file for each seed, of the generator alone. Raises PromptError and ConfigError as the pipeline does."""
        if not 0 < len(seeds) <= MAX_PICTURES:
            raise ConfigError(f"{len(seeds)} pictures came; at most {MAX_PICTURES} at once")
        prompt = self._prompt(prompt)
        z = self.pipe.z(seeds)
        with self._turn:
            points = self.pipe.latents([prompt] * len(seeds), z, check_psi(psi)).base
            images = to_pil(self.pipe.draw(points)[0])
        infos = [self.pipe.info(prompt, seed, psi, self.pipe.generator.cfg.resolution) for seed in seeds]
        return [self._keep(f"seed-{i.seed}.png", png_bytes(p, i)) for p, i in zip(images, infos, strict=True)]

    def full_size(self, picture: Path) -> Path:
        """A file of `pictures` drawn as large as the model can."""
        if self.pipe.upsampler is None:
            return picture
        said = read_info(picture)
        prompt, seed, psi = said["prompt"], int(said["seed"]), float(said["psi"])
        with self._turn:
            (image,) = self.pipe(prompt, seeds=[seed], truncation_psi=psi).images
        return self._keep(picture.name, png_bytes(image, self.pipe.info(prompt, seed, psi, self.pipe.resolution)))

    def mixes(self, coarse: str, fine: str, seed: int, psi: float) -> list[Path]:
        """A file for each boundary, from all fine to all coarse."""
        prompts = [self._prompt(coarse), self._prompt(fine)]
        layers = range(self.num_layers + 1)
        with self._turn:
            a, b = (self._point(prompt, seed, psi) for prompt in prompts)
            images = to_pil(self.pipe.draw(Latents.join([mix(a, b, layer) for layer in layers]))[0])
        paths = []
        for layer, image in zip(layers, images, strict=True):
            edit = {"edit": "mix", "fine": prompts[1], "fine_seed": seed, "layer": layer}
            paths.append(self._keep(f"mix-{layer}.png", png_bytes(image, self._info(prompts[0], seed, psi, edit))))
        return paths

    def explore(self, prompts: Sequence[str], seed: int, psi: float, *, directions: bool) -> str:
        """The name of a plane: between four prompts, or along the two directions in which the prompts differ most."""
        prompts = [self._prompt(prompt) for prompt in prompts if prompt.strip() or not directions]
        if directions and not prompts:
            raise PromptError("no prompt came; give at least one")
        name = hashlib.sha256(json.dumps([prompts, seed, psi, directions]).encode()).hexdigest()[:16]
        if name not in self._planes:
            with self._turn:
                self._planes[name] = self._plane(prompts, seed, psi, directions=directions)
            while len(self._planes) > MAX_PLANES:
                self._planes.popitem(last=False)
        return name

    def frame(self, name: str, x: float, y: float, size: int) -> Image.Image:
        """The generator's picture of a place in a plane; where `size` is larger, the model's largest, or that enlarged.

        Raises ConfigError for a plane that is gone.
        """
        found = self._planes.get(name)
        if found is None:
            raise ConfigError("this plane is gone; set it anew")
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ConfigError(f"({x:g}, {y:g}) isn't in the plane; expected numbers from 0 to 1")
        point = found.at(x, y)
        large = size > self.pipe.generator.cfg.resolution
        with self._turn:
            (image,) = to_pil((self.pipe.draw(point) if large else self._frames.draw(point.base))[0])
        return image if image.width >= size else image.resize((size, size), Image.Resampling.LANCZOS)

    def table(self, prompts: Sequence[str], styles: Sequence[str], seed: int, psi: float) -> Path:
        """A sheet of things down and styles across; a style holds {} where the thing goes."""
        things = [thing.strip() for thing in prompts if thing.strip()]
        forms = [style.strip() for style in styles if style.strip()]
        if not things or not forms:
            raise PromptError("the table is empty; give at least one thing and one style")
        if bad := [form for form in forms if form.count("{}") != 1]:
            raise PromptError(f"{bad[0]!r} has no one place for the thing; write {{}} there: a flat icon of {{}}")
        if len(things) * len(forms) > 2 * MAX_PICTURES:
            raise ConfigError(f"{len(things)} x {len(forms)} pictures are more than {2 * MAX_PICTURES}; give fewer")
        texts = [self._prompt(form.replace("{}", thing)) for thing in things for form in forms]
        with self._turn:
            images = self.pipe(texts, seeds=[check_seed(seed)] * len(texts), truncation_psi=psi).images
        rows = [images[start : start + len(forms)] for start in range(0, len(images), len(forms))]
        said = {"prompts": "\n".join(texts), "seeds": str(seed), "psi": str(psi), "model": self.pipe.model_hash}
        return self._keep("table.png", sheet_bytes(labelled_grid(rows, things, forms), said))

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
        texts = [self._prompt(prompt) for prompt in prompts if prompt.strip()]
        counts = len(texts), len(seeds)
        count = max(counts)
        if min(counts) not in (1, count):
            raise ConfigError(f"{counts[0]} prompts and {counts[1]} seeds came; give one seed, or one for each prompt")
        keys = [Key(texts[n % len(texts)], seeds[n % len(seeds)]) for n in range(count)]
        moments = timeline(keys, max(1, round(seconds * fps)), loop=loop, easing="smooth")
        if len(moments) > MAX_FRAMES:
            raise ConfigError(f"{len(moments)} frames are more than {MAX_FRAMES}; use gigagan video for longer films")
        side = max(self.pipe.resolution, 4 * self.pipe.generator.cfg.resolution)
        path = self.folder / f"film.{kind}"
        check_video(path, fps=fps, size=side, count=len(moments))
        about = "; ".join(f"{key.prompt} (seed {key.seed})" for key in keys)
        check_psi(psi)

        def frames() -> Iterator[Image.Image]:
            parts = film(self.pipe, moments, psi=psi)
            while True:
                with self._turn:
                    part = next(parts, None)
                if part is None:
                    return
                for image in to_pil(part):
                    yield image.resize((side, side), Image.Resampling.LANCZOS)

        path = self._new(f"film.{kind}", hashlib.sha256(repr([moments, psi, fps]).encode()).hexdigest())
        write_video(path, frames(), count=len(moments), fps=fps, about=f"{about}; model {self.pipe.model_hash}")
        return path

    def upsampled(self, picture: Path, scale: int, prompt: str, seed: int) -> tuple[Path, Path]:
        """The picture enlarged by Lanczos, to compare, and `scale` times as large by the model.

        Raises ConfigError where the model has no upsampler, DataError where the picture can't be used.
        """
        if self.pipe.enlarger is None:
            raise ConfigError("this model holds no upsampler; start the studio with one that does")
        request = Request(prompt.strip(), check_seed(seed))
        self.pipe.enlarger.check(request)
        digest = hashlib.sha256(repr([picture.read_bytes(), scale, request]).encode()).hexdigest()
        job = files.Job(picture, self._new(f"{picture.stem}-{scale}x.png", digest))
        photo, size = files.planned(job, scale=scale, longest=0)
        if size.width * size.height > MAX_UPSAMPLED:
            raise ConfigError(
                f"{size.width} x {size.height} px are more than {MAX_UPSAMPLED:,}; use gigagan upsample for larger ones"
            )
        said = {"prompt": request.prompt, "seed": str(seed), "noise": str(request.noise), "model": self.pipe.model_hash}
        with self._enlarging:
            if not job.target.exists():
                files.run(job, photo, size, self.pipe.enlarger, request, said, lambda pixels: None)
        plain = io.BytesIO()
        shown = eight_bits(photo.image).convert("RGB")
        shown.resize((size.width, size.height), Image.Resampling.LANCZOS).save(plain, "PNG")
        return self._keep("lanczos.png", plain.getvalue()), job.target

    def _prompt(self, prompt: str) -> str:
        (checked,) = self.pipe.check(prompt)
        return checked

    def _point(self, prompt: str, seed: int, psi: float) -> Latents:
        return self.pipe.latents([prompt], self.pipe.z([seed]), check_psi(psi))

    def _plane(self, prompts: Sequence[str], seed: int, psi: float, *, directions: bool) -> Plane:
        points = [self._point(prompt, seed, psi) for prompt in prompts]
        if not directions:
            return Plane(points)
        each = -(-DIRECTION_SAMPLES // len(prompts))
        z = self.pipe.z(range(each))
        w = torch.cat([self.pipe.latents([prompt] * each, z, 1.0).ws[:, 0] for prompt in prompts])
        return Plane(points[:1], principal_directions(w, 2))

    def _info(self, prompt: str, seed: int, psi: float, edit: dict[str, object]) -> PictureInfo:
        info = self.pipe.info(prompt, seed, psi, self.pipe.resolution)
        return dataclasses.replace(info, edit=json.dumps(edit, ensure_ascii=False))

    def _keep(self, name: str, content: bytes) -> Path:
        path = self._new(name, hashlib.sha256(content).hexdigest())
        path.write_bytes(content)
        return path

    def _new(self, name: str, digest: str) -> Path:
        """A place that only this content has; the oldest of MAX_FILES go."""
        path = self.folder / digest[:32] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.append(path)
        while len(self._files) > MAX_FILES:
            old = self._files.popleft()
            if old not in self._files:
                old.unlink(missing_ok=True)
        return path
