"""gigagan upsample: pictures of any size, larger."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.cli.cells import DEVICE, MODEL
from gigagan.cli.files import check_target
from gigagan.cli.signing import configured_signer, signing
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError, DataError
from gigagan.request import check_seed

if TYPE_CHECKING:
    from PIL.Image import Image

    from gigagan.provenance import Signer
    from gigagan.upsampling.enlarger import Enlarger, Request
    from gigagan.upsampling.files import Job

TRIAL_PX = 128
"""Side of the picture by which the time is projected, at most."""
SHEET_PX = 512


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|FOLDER...")
@click.option("--scale", type=click.Choice(["2", "4", "8"]), help="Times the side.  [default: that of the model]")
@click.option("--to", type=click.IntRange(2, 65536), metavar="PIXELS", help="Length of the longer side instead.")
@click.option("--prompt", default="", help="What the pictures show; helps a model that was trained with captions.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the details that are invented.")
@click.option("--noise", type=float, default=0.0, show_default=True, help="More hides faults and invents more.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the PNG files."
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write before and after here; another file there is replaced.",
)
@MODEL
@DEVICE
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Arithmetic."
)
def upsample(
    paths: tuple[Path, ...],
    scale: str | None,
    to: int | None,
    prompt: str,
    seed: int,
    noise: float,
    out: Path,
    sheet: Path | None,
    model: str,
    device: str,
    dtype: str,
) -> None:
    """Make pictures larger and print the paths of the new ones.

    Any size; gray, 16-bit gray, alpha, color profile, EXIF and orientation are kept. A file that is in --out already
    is left as it is, so the same command again goes on where it stopped. A picture that can't be used, or in whose
    place is a file of another size, is named on stderr and left out; the command then ends with 2.
    """
    if scale and to:
        raise ConfigError("--scale and --to both came; give one of them")
    check_seed(seed)
    if sheet is not None:
        check_target(sheet, ".png")
    signer = configured_signer()

    from gigagan.upsampling import files
    from gigagan.upsampling.enlarger import Request

    work = files.jobs(paths, out)
    if sheet is not None and any(_same(sheet, path) for job in work for path in (job.source, job.target)):
        raise ConfigError(f"{sheet}: is one of the pictures; give --sheet another name")
    enlarger, said = _enlarger(model, device, dtype)
    request = Request(prompt, seed, noise)
    enlarger.check(request)
    times = 0 if to else int(scale or enlarger.factor)
    there = dict.fromkeys(job for job in work if job.target.exists())
    others = _others(there, times, to or 0)
    if len(there) > len(others):
        click.echo(f"gigagan: {len(there) - len(others)} of {len(work)} pictures are in {out} already", err=True)
    todo = [job for job in work if job not in there]
    failed = len(others) + (_run(todo, enlarger, request, said, times, to or 0, signer) if todo else 0)
    if sheet is not None:
        _sheet(sheet, [job for job in work if job not in others and job.target.exists()][:8], said, signer)
    if failed:
        raise DataError(f"{failed} of {len(work)} pictures were left out; the reasons are above")


def _same(path: Path, other: Path) -> bool:
    """Whether two names are one file's; where capitals don't count, only the file tells."""
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _others(there: "Iterable[Job]", scale: int, longest: int) -> "set[Job]":
    """Those whose place another file has, each told."""
    from gigagan.upsampling import files

    others = set()
    for job in there:
        try:
            files.check_there(job, scale=scale, longest=longest)
        except DataError as error:
            others.add(job)
            click.echo(f"gigagan: {error}", err=True)
    return others


def _enlarger(model: str, device: str, dtype: str) -> "tuple[Enlarger, dict[str, str]]":
    from gigagan import dist
    from gigagan.checkpoint import load_model
    from gigagan.upsampling.enlarger import Enlarger

    loaded = load_model(model, dist.device(device), discriminator=False)
    if loaded.upsampler is None:
        raise ConfigError(f"{model}: holds no upsampler; give --model one that does")
    if trained_on := loaded.index.get("provenance", {}).get("upsampler_trained_on", ""):
        click.echo(
            f"gigagan: the upsampler of {model} was trained on {trained_on}; others may come out worse", err=True
        )
    made = Enlarger(loaded.upsampler, loaded.text_encoder, dtype=dist.dtype(dtype))
    return made, {"model": loaded.hash}


def _run(
    todo: "list[Job]",
    enlarger: "Enlarger",
    request: "Request",
    said: dict[str, str],
    scale: int,
    longest: int,
    signer: "Signer | None",
) -> int:
    """Every job; the number of those that couldn't be done."""
    from tqdm import tqdm

    from gigagan.upsampling import files

    said = said | {"prompt": request.prompt, "seed": str(request.seed), "noise": str(request.noise)}
    failed, rate = 0, 0.0
    with tqdm(total=len(todo), unit="picture", disable=None) as bar:
        for job in todo:
            try:
                photo, size = files.planned(job, scale=scale, longest=longest)
                work = enlarger.work(photo.width, photo.height, size.scale)
                if not rate:
                    side = min(max(photo.width, photo.height), TRIAL_PX)
                    rate = _seconds_a_pixel(enlarger, request, side, min(size.scale, enlarger.factor))
                    _tell(len(todo), rate * work, job)
                with tqdm(total=work, unit="px", unit_scale=True, leave=False, disable=None) as one:
                    files.run(job, photo, size, enlarger, request, said, one.update, signer)
                tqdm.write(str(job.target))
            except DataError as error:
                failed += 1
                click.echo(f"gigagan: {error}", err=True)
            bar.update(1)
    return failed


def _tell(count: int, seconds: float, job: "Job") -> None:
    click.echo(f"gigagan: about {_duration(seconds)} for {job.source.name}, {count} pictures in all", err=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds_a_pixel(enlarger: "Enlarger", request: "Request", side: int, factor: int) -> float:
    """Of what goes into a pass, by drawing a small picture."""
    import time

    import torch

    from gigagan.upsampling.enlarger import Rows

    trial = Rows(torch.zeros(3, side, side))
    times = []
    for _ in range(2):  # the first call also prepares
        start = time.perf_counter()
        for _ in enlarger.bands(trial, factor, request):
            pass
        times.append(time.perf_counter() - start)
    return times[-1] / side**2


def _sheet(path: Path, done: "list[Job]", said: dict[str, str], signer: "Signer | None") -> None:
    """The first pictures, before (enlarged by Lanczos) and after."""
    from PIL.Image import Resampling
    from PIL.Image import open as open_image

    from gigagan.grid import labelled_grid
    from gigagan.metadata import COMPOSITE_TYPE, sheet_bytes
    from gigagan.upsampling.formats import eight_bits
    from gigagan.upsampling.photo import MAX_PIXELS, read_photo
    from gigagan.upsampling.png import png_sides

    large = [job for job in done if math.prod(png_sides(job.target) or ()) > MAX_PIXELS]
    for job in large:
        click.echo(
            f"gigagan: {job.target}: isn't on {path}, being larger than {MAX_PIXELS // 2**20} megapixels", err=True
        )
    done = [job for job in done if job not in large]
    if not done:
        return
    rows = []
    for job in done:
        with open_image(job.target) as after:
            box = _middle(after.size)
            size = after.size
            after_cut = eight_bits(after).convert("RGB").crop(box)
        small = eight_bits(read_photo(job.source).image).convert("RGB")
        before = small.resize(size, Resampling.LANCZOS).crop(box)
        rows.append([before, after_cut])
    cut = max(max(image.size) for row in rows for image in row)
    square = [[_on_square(image, cut) for image in row] for row in rows]
    sheet = labelled_grid(square, rows=[job.source.name for job in done], columns=["before (Lanczos)", "after"])
    content = sheet_bytes(sheet, said, source_type=COMPOSITE_TYPE)
    sign = signing(signer, said["model"], COMPOSITE_TYPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, sign(content))
    click.echo(str(path))


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """At most SHEET_PX of the middle, pixel for pixel."""
    width, height = (min(n, SHEET_PX) for n in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _on_square(image: "Image", side: int) -> "Image":
    from PIL.Image import new

    square = new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
