"""gigagan edit directions, name and project: what is found in the latent space and kept in files."""

from collections.abc import Iterator
from pathlib import Path

import click

from gigagan.cli.cells import DEVICE, MODEL, Cell, Source, deliver, edited, words
from gigagan.cli.files import check_new, check_target, printable, probe
from gigagan.cli.signing import configured_signer, signing
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError, DataError

SAMPLES = 2000
SHOWN_STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="New file to write, .safetensors; beside it comes a sheet.")
@click.option(
    "--method",
    type=click.Choice(["pca", "factors"]),
    default="pca",
    show_default=True,
    help="pca: where w varies the most; factors: what moves the kernels of the layers the most.",
)
@click.option("--count", type=click.IntRange(1, 100), default=8, show_default=True, help="Directions to keep.")
@MODEL
@DEVICE
def directions(prompts: tuple[str, ...], out: Path, method: str, count: int, model: str, device: str) -> None:
    """Find directions of w over many seeds of all PROMPTs, the strongest first, and keep them in a file.

    With one prompt they are what its seeds differ in, with several also what the prompts differ in. A step of 1 is a
    standard deviation. Look at the sheet, then give them names: `gigagan edit name`.
    """
    check_target(out, ".safetensors")
    sheet = out.with_suffix(".png")
    check_new(out, sheet)
    signer = configured_signer()

    import torch

    from gigagan.editing import move, principal_directions, style_factors
    from gigagan.editing.directions import numbered
    from gigagan.grid import check_size, grid_size
    from gigagan.pipeline import DEFAULT_PSI, Pipeline

    pipe = Pipeline.from_pretrained(model, device=device)
    asked = words(pipe, prompts)
    if count > pipe.generator.cfg.w_dim:
        raise ConfigError(f"--count {count}: w has {pipe.generator.cfg.w_dim} dimensions; give at most so many")
    check_size(grid_size(count, len(SHOWN_STRENGTHS), pipe.resolution), "give a smaller --count")
    each = -(-SAMPLES // len(asked))
    w = torch.cat([pipe.latents([prompt] * each, pipe.z(range(each)), 1.0).ws[:, 0].clone() for prompt in asked])
    steps = principal_directions(w, count) if method == "pca" else style_factors(pipe.generator, w, count)
    found = numbered(steps, method, pipe.model_hash)
    probe(out.parent)
    write_whole(out, found.as_bytes(), new=True)
    print(out)
    source = Source(asked[0])
    point = source.latents(pipe, 0, DEFAULT_PSI)

    def cells() -> Iterator[Cell]:
        for name, step in zip(found.names, found.steps, strict=True):
            for strength in SHOWN_STRENGTHS:
                what = {"direction": name, "directions": out.name, "strength": strength}
                info = edited(pipe, source, 0, DEFAULT_PSI, "arithmetic", **what)
                yield Cell(move(point, step, strength), info, "")

    columns = [f"{strength:+g}" if strength else "0" for strength in SHOWN_STRENGTHS]
    deliver(pipe, cells(), found.names, columns, out.parent, sheet, signer, new=True)


@click.command()
@click.argument("file", type=FILE)
@click.argument("names", metavar="NUMBER=NAME...", nargs=-1, required=True)
def name(file: Path, names: tuple[str, ...]) -> None:
    """Give directions in FILE names, such as 0=rounder 3=darker, and print all of them."""
    wanted: dict[int, str] = {}
    for text in names:
        number, equals, given = text.partition("=")
        if not equals or not number.isascii() or not number.isdigit() or len(number) > 9:
            raise ConfigError(f"{text!r} names no direction; write NUMBER=NAME such as 0=rounder")
        if int(number) in wanted:
            raise ConfigError(f"direction {number} got two names; give one")
        wanted[int(number)] = given

    from gigagan.editing import Directions

    found = Directions.read(file).named(wanted)
    write_whole(file, found.as_bytes())
    for number_, told in enumerate(found.names):
        print(f"{number_}: {printable(told)}")


@click.command()
@click.argument("picture", type=FILE)
@click.argument("prompt")
@click.option("--out", type=FILE, required=True, help="New file to write, .safetensors; beside it comes a sheet.")
@click.option("--steps", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Of gradient descent.")
@MODEL
@DEVICE
def project(picture: Path, prompt: str, out: Path, steps: int, model: str, device: str) -> None:
    """Find the styles that draw PICTURE with the words of PROMPT, which should say what is in it; seconds to a minute.

    What is found can stand where the other edit commands take a prompt. The picture is cut to its middle square. Looks
    through EfficientNet-Lite0, fetched at the first run (`gigagan data weights lite0`).
    """
    check_target(out, ".safetensors")
    sheet = out.with_suffix(".png")
    check_new(out, sheet)
    signer = configured_signer()

    from gigagan.data.dataset import decode
    from gigagan.data.weights import fetch
    from gigagan.editing import project as projected
    from gigagan.editing.point_file import PointFile
    from gigagan.evaluation.features import as_batch
    from gigagan.grid import labelled_grid
    from gigagan.metadata import COMPOSITE_TYPE, sheet_bytes
    from gigagan.models.frozen import load_efficientnet_lite
    from gigagan.pipeline import Pipeline, to_pil

    photo = picture.read_bytes()
    pipe = Pipeline.from_pretrained(model, device=device, upsampled=False)
    (prompt,) = words(pipe, [prompt])
    try:
        img = as_batch([decode(photo, pipe.resolution)])
    except DataError as error:
        raise DataError(f"{picture}: {error}") from None
    fetch("lite0", progress=True)
    start = pipe.latents([prompt], pipe.z([0]), 0.0)
    network = load_efficientnet_lite("lite0", pipe.device)
    found = projected(pipe.generator, start, img, network, steps=steps, progress=True)
    probe(out.parent)
    write_whole(out, PointFile(found.ws[0], prompt, pipe.model_hash).as_bytes(), new=True)
    print(out)
    before_after = [*to_pil(img), *to_pil(pipe.draw(found)[0])]
    said = {"prompts": prompt, "model": pipe.model_hash, "edits": f"project {picture.name}"}
    table = labelled_grid([before_after], [prompt], ["picture", "found"])
    content = sheet_bytes(table, said, source_type=COMPOSITE_TYPE)
    sign = signing(signer, pipe.model_hash, COMPOSITE_TYPE)
    write_whole(sheet, sign(content), new=True)
    print(sheet)
