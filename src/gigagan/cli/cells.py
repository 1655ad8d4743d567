"""What the edit commands share: where points come from, and cells that become files or one labeled sheet."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli.files import check_place, probe, save_new, slug, typed
from gigagan.cli.signing import signing
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from gigagan.metadata import PictureInfo
    from gigagan.models.latents import Latents
    from gigagan.pipeline import Pipeline
    from gigagan.provenance import Signer

POINT_SUFFIX = ".safetensors"
MAX_CELLS = 10_000
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="Folder for a file a picture. A file that holds another picture stays; the new one gets -1, -2 ...",
)
GRID = click.option(
    "--grid", type=click.Path(path_type=Path), metavar="FILE", help="Write one labeled sheet instead, and replace FILE."
)
SEEDS = click.option("--seeds", metavar="LIST", help="Such as 7, 0-15 or 0,1,4-6: a row for each.  [default: 0]")
PSI = click.option("--psi", type=float, help="Truncation: 1 = none, 0 = the typical picture.  [default: 0.7]")
MODEL = click.option(
    "--model",
    default="emoji",
    show_default=True,
    help="Model directory, emoji (in the package), or OWNER/NAME of the hub.",
)
DEVICE = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps; auto = the fastest found."
)


def drawing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has that draws edited pictures."""
    for option in (DEVICE, MODEL, GRID, OUT, PSI, SEEDS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Cell:
    """An edited picture to draw."""

    point: "Latents"
    """Of one picture."""
    info: "PictureInfo"
    stem: str
    """The name of its file, without the suffix."""


@dataclass(frozen=True)
class Source:
    """Where a point comes from: a prompt and seeds, or a picture that `gigagan edit project` found."""

    prompt: str
    point: "Latents | None" = None
    file: str = ""

    @classmethod
    def of(cls, text: str, pipe: "Pipeline") -> "Source":
        """A prompt, or a file of `gigagan edit project`. Raises what checking and reading raise."""
        if not text.endswith(POINT_SUFFIX):
            (prompt,) = words(pipe, [text])
            return cls(prompt)

        from gigagan.editing.point_file import PointFile
        from gigagan.editing.tensor_file import check_model

        found = PointFile.read(Path(text))
        check_model(Path(text), found.model, pipe)
        return cls(found.prompt, found.latents(pipe), Path(text).name)

    def latents(self, pipe: "Pipeline", seed: int, psi: float) -> "Latents":
        """The point of a seed; of a file the one that it holds."""
        return pipe.latents([self.prompt], pipe.z([seed]), psi) if self.point is None else self.point

    @property
    def slug(self) -> str:
        """Its part of a file's name."""
        return slug(Path(self.file).stem or self.prompt)

    @property
    def name(self) -> str:
        """What a label calls it."""
        return self.file or self.prompt


def words(pipe: "Pipeline", texts: Sequence[str]) -> list[str]:
    """Prompts, checked; of each that is too long says what is cut. Raises ConfigError for the name of a file."""
    for text in texts:
        if text.endswith(POINT_SUFFIX):
            raise ConfigError(f"{text}: is the name of a file, and here only words can stand; write a prompt")
    prompts = pipe.check(texts)
    tell_cut(pipe, prompts)
    return prompts


def tell_cut(pipe: "Pipeline", prompts: Sequence[str]) -> None:
    """Say of each prompt that is too long what is cut."""
    for prompt in dict.fromkeys(prompts):
        if message := pipe.cut(prompt):
            click.echo(f"gigagan: {message}", err=True)


def check_seeds(sources: Sequence[Source], seeds: str | None, psi: float | None) -> None:
    """Raises ConfigError where nothing would come from a seed."""
    if all(source.point is not None for source in sources):
        for option, value in (("--seeds", seeds), ("--psi", psi)):
            if value is not None:
                raise ConfigError(f"{option} came, but every picture comes from a file; leave it out")


def edited(pipe: "Pipeline", source: Source, seed: int, psi: float, edit: str, **what: object) -> "PictureInfo":
    """What the file of an edited picture shall say."""
    if source.file:
        what = {"file": source.file, **what}
    said = json.dumps({"edit": edit, **what}, ensure_ascii=False)
    return dataclasses.replace(pipe.info(source.prompt, seed, psi, pipe.resolution), edit=said)


def check_output(out: Path, grid: Path | None) -> None:
    """Before anything is loaded. Raises ConfigError where --out came too and would be without effect."""
    if grid is not None and typed("out"):
        raise ConfigError("--grid writes one sheet and --out picture files; give one of them")
    check_place(grid if grid is not None else out, folder=grid is None)


def deliver(
    pipe: "Pipeline",
    cells: Iterator[Cell],
    rows: Sequence[str],
    columns: Sequence[str],
    out: Path,
    grid: Path | None,
    signer: "Signer | None",
    *,
    new: bool = False,
) -> None:
    """Draw the cells, row by row, and write a file for each, or one labeled sheet.

    Of a `new` sheet raises FileExistsError where the name is taken by then.
    """
    from tqdm import tqdm

    from gigagan.grid import check_size, grid_size, labelled_grid
    from gigagan.metadata import png_bytes, sheet_bytes

    if len(rows) * len(columns) > MAX_CELLS:
        raise ConfigError(f"{len(rows)} x {len(columns)} pictures are more than {MAX_CELLS:,}; give fewer")
    if grid is not None:
        check_size(grid_size(len(rows), len(columns), pipe.resolution))
    probe(out if grid is None else grid.parent)
    sign = signing(signer, pipe.model_hash)
    images = []
    infos = []
    for cell, image in _drawn(pipe, cells, len(rows) * len(columns)):
        if grid is None:
            tqdm.write(str(save_new(out, cell.stem, png_bytes(image, cell.info), sign)), file=sys.stdout)
        else:
            images.append(image)
            infos.append(cell.info)
    if grid is not None:
        width = len(columns)
        table = [images[start : start + width] for start in range(0, len(images), width)]
        said = {
            "prompts": "\n".join(dict.fromkeys(info.prompt for info in infos)),
            "seeds": ",".join(dict.fromkeys(str(info.seed) for info in infos)),
            "psi": str(infos[0].psi),
            "model": pipe.model_hash,
            "edits": "\n".join(info.edit for info in infos),
        }
        sheet = sheet_bytes(labelled_grid(table, rows, columns), said)
        write_whole(grid, sign(sheet), new=new)
        print(grid)


def _drawn(pipe: "Pipeline", cells: Iterator[Cell], count: int) -> "Iterator[tuple[Cell, Any]]":
    """A micro-batch at a time under a progress bar."""
    from itertools import islice

    from tqdm import tqdm

    from gigagan.models.latents import Latents
    from gigagan.pipeline import to_pil

    with tqdm(total=count, unit="img", disable=None) as bar:
        while part := list(islice(cells, pipe.micro_batch)):
            pictures = to_pil(pipe.draw(Latents.join([cell.point for cell in part]))[0])
            yield from zip(part, pictures, strict=True)
            bar.update(len(part))
