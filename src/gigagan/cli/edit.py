"""gigagan edit: pictures mixed, blended and moved, as files or as one labeled sheet."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli import LazyGroup
from gigagan.cli.cells import Cell, Source, check_output, check_seeds, deliver, drawing_options, edited
from gigagan.cli.files import slug
from gigagan.cli.generate import parse_seeds
from gigagan.cli.signing import configured_signer
from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from gigagan.editing.blending import Way
    from gigagan.pipeline import Pipeline

MAX_STRENGTH = 1000  # far beyond what draws anything; float32 overflows at tens of digits

COMMANDS = {
    "mix": ("gigagan.cli.edit:mix", "Coarse layers of one picture, fine layers of another."),
    "interpolate": ("gigagan.cli.edit:interpolate", "Pictures between two prompts, or between seeds of one."),
    "grid": ("gigagan.cli.edit:grid_", "A plane of pictures between four prompts."),
    "arithmetic": ("gigagan.cli.edit:arithmetic", "Add a difference of prompts, or a direction, to pictures."),
    "directions": ("gigagan.cli.edit_find:directions", "Find directions in which pictures vary, and keep them."),
    "name": ("gigagan.cli.edit_find:name", "Give directions names."),
    "project": ("gigagan.cli.edit_find:project", "Find the point that draws a given picture, to edit it."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def edit() -> None:
    """Mix, blend, move and find pictures in the model's latent space.

    Where a command that draws takes a PROMPT (all but directions and project) it also takes a file that
    `gigagan edit project` wrote. Of an unconditional model a PROMPT is empty: "".
    """


@click.command()
@click.argument("coarse", metavar="PROMPT")
@click.argument("fine", metavar="FINE_PROMPT")
@click.option(
    "--layers",
    metavar="LIST",
    help="Boundaries, as seeds are given: layers before one are PROMPT's, the others FINE_PROMPT's.  [default: half]",
)
@click.option("--fine-seeds", metavar="LIST", help="A column for each.  [default: the seed of the row]")
@drawing_options
def mix(
    coarse: str,
    fine: str,
    layers: str | None,
    fine_seeds: str | None,
    seeds: str | None,
    psi: float | None,
    out: Path,
    grid: Path | None,
    model: str,
    device: str,
) -> None:
    """Draw layout and shape of PROMPT with color and texture of FINE_PROMPT.

    With --fine-seeds and the same prompt twice this is style mixing: a seed's shape in another seed's colors.
    """
    numbers = _seeds(seeds)
    columns = [] if fine_seeds is None else parse_seeds(fine_seeds, option="--fine-seeds")
    boundaries = [] if layers is None else parse_seeds(layers, option="--layers")
    if columns and len(boundaries) > 1:
        raise ConfigError("--fine-seeds makes the columns of its own; give one layer with it")
    check_output(out, grid)
    signer = configured_signer()

    from gigagan.editing import mix as mixed
    from gigagan.editing.mixing import check_layer

    pipe, psi_, sources = _opened(model, device, psi, coarse, fine, seeds=seeds)
    boundaries = boundaries or [pipe.generator.num_ws // 2]
    for layer in boundaries:
        check_layer(layer, pipe.generator.num_ws)

    def cells() -> Iterator[Cell]:
        for seed in numbers:
            a = sources[0].latents(pipe, seed, psi_)
            for fine_seed in columns or [seed]:
                b = sources[1].latents(pipe, fine_seed, psi_)
                for layer in boundaries:
                    what: dict[str, Any] = {"fine": sources[1].name, "fine_seed": fine_seed, "layer": layer}
                    stem = f"{sources[0].slug}-{seed}-layer-{layer}-{sources[1].slug}-{fine_seed}"
                    info = edited(pipe, sources[0], seed, psi_, "mix", **what)
                    yield Cell(mixed(a, b, layer), info, stem)

    labels = [f"fine seed {n}" for n in columns] or [f"fine from layer {n}" for n in boundaries]
    deliver(pipe, cells(), [f"{sources[0].name}, seed {n}" for n in numbers], labels, out, grid, signer)


@click.command()
@click.argument("start", metavar="PROMPT")
@click.argument("end", metavar="[TO_PROMPT]", required=False)
@click.option("--steps", type=click.IntRange(2), default=7, show_default=True, help="Pictures, both ends included.")
@click.option(
    "--space", type=click.Choice(["z", "w"]), help="Between seeds: through the latents z or the styles w.  [default: z]"
)
@click.option(
    "--path",
    type=click.Choice(["spherical", "linear"]),
    help="On the great arc or straight.  [default: spherical in z, linear in w]",
)
@drawing_options
def interpolate(
    start: str,
    end: str | None,
    steps: int,
    space: str | None,
    path: "Way | None",
    seeds: str | None,
    psi: float | None,
    out: Path,
    grid: Path | None,
    model: str,
    device: str,
) -> None:
    """Draw pictures on the way from PROMPT to TO_PROMPT at the same seed; without it, from each of --seeds to the next.

    The ends are the plain pictures. Between prompts z stays and the way is through w and the words, which go straight.
    """
    numbers = _seeds(seeds, again=end is None)
    if end is None and len(numbers) < 2:
        raise ConfigError("one prompt and one seed came; give TO_PROMPT, or two seeds or more such as --seeds 0-3")
    if end is not None and space is not None:
        raise ConfigError("--space is for the way between seeds of one prompt; leave it or TO_PROMPT out")
    check_output(out, grid)
    signer = configured_signer()

    from gigagan.editing import interpolate as between
    from gigagan.editing import lerp, slerp

    pipe, psi_, sources = _opened(model, device, psi, *([start] if end is None else [start, end]), seeds=seeds)
    if end is None and sources[0].point is not None:
        raise ConfigError(f"{start}: holds one picture, which has no seeds; give TO_PROMPT")
    through_z = end is None and space != "w"
    way: Way = path or ("spherical" if through_z else "linear")
    line = slerp if way == "spherical" else lerp
    shares = [n / (steps - 1) for n in range(steps)]
    ways = [(n, n) for n in numbers] if end is not None else list(itertools.pairwise(numbers))

    def cells() -> Iterator[Cell]:
        for first, last in ways:
            a, b = sources[0].latents(pipe, first, psi_), sources[-1].latents(pipe, last, psi_)
            for n, t in enumerate(shares):
                if through_z:
                    point = pipe.latents([sources[0].prompt], line(pipe.z([first]), pipe.z([last]), t), psi_)
                else:
                    point = between(a, b, t, way)
                to = {"to": sources[-1].name, "to_seed": last, "t": t, "space": "z" if through_z else "w", "path": way}
                stem = f"{sources[0].slug}-{first}-to-{sources[-1].slug}-{last}-{n}"
                yield Cell(point, edited(pipe, sources[0], first, psi_, "interpolate", **to), stem)

    rows = [f"{sources[0].name} to {sources[-1].name}, seed {a}" if end else f"seed {a} to {b}" for a, b in ways]
    deliver(pipe, cells(), rows, [f"{t:.0%}" for t in shares], out, grid, signer)


@click.command("grid")
@click.argument("corners", metavar="TOP_LEFT TOP_RIGHT BOTTOM_LEFT BOTTOM_RIGHT", nargs=4)
@click.option("--size", type=click.IntRange(2, 50), default=5, show_default=True, help="Pictures a side.")
@drawing_options
def grid_(
    corners: tuple[str, ...],
    size: int,
    seeds: str | None,
    psi: float | None,
    out: Path,
    grid: Path | None,
    model: str,
    device: str,
) -> None:
    """Draw the plane between four prompts at one seed, --seeds of one; its corners are the plain pictures."""
    numbers = _seeds(seeds)
    if len(numbers) > 1:
        raise ConfigError(f"--seeds {seeds}: a plane is of one seed; give one")
    check_output(out, grid)
    signer = configured_signer()

    from gigagan.editing import plane

    pipe, psi_, sources = _opened(model, device, psi, *corners, seeds=seeds)
    points = [source.latents(pipe, numbers[0], psi_) for source in sources]
    shares = [n / (size - 1) for n in range(size)]

    def cells() -> Iterator[Cell]:
        others = [source.name for source in sources[1:]]
        for i, y in enumerate(shares):
            for j, x in enumerate(shares):
                info = edited(pipe, sources[0], numbers[0], psi_, "grid", corners=others, x=x, y=y)
                yield Cell(plane(points, x, y), info, f"{sources[0].slug}-grid-{numbers[0]}-{i}-{j}")

    names = [source.name for source in sources]
    rows = [f"{names[0]} to {names[1]}", *[""] * (size - 2), f"{names[2]} to {names[3]}"]
    deliver(pipe, cells(), rows, [f"{x:.0%}" for x in shares], out, grid, signer)


@click.command()
@click.argument("start", metavar="PROMPT")
@click.option("--add", "plus", multiple=True, metavar="PROMPT", help="Such as: a flat icon of a red apple. Repeatable.")
@click.option("--subtract", "minus", multiple=True, metavar="PROMPT", help="Such as: a 3D render of a red apple.")
@click.option(
    "--direction",
    type=(click.Path(path_type=Path, dir_okay=False), str),
    metavar="FILE NAME",
    help="A direction of `gigagan edit directions` in their place.",
)
@click.option("--strengths", default="0,0.5,1,1.5", show_default=True, metavar="LIST", help="A column for each.")
@drawing_options
def arithmetic(
    start: str,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    direction: tuple[Path, str] | None,
    strengths: str,
    seeds: str | None,
    psi: float | None,
    out: Path,
    grid: Path | None,
    model: str,
    device: str,
) -> None:
    """Draw PROMPT with what one prompt has and another hasn't added to its style: w + strength (w(add) - w(subtract)).

    Each --add has its --subtract; of several pairs the mean is added.
    """
    numbers, amounts = _seeds(seeds), parse_strengths(strengths)
    if (direction is None) == (not plus and not minus):
        raise ConfigError("give --add with --subtract, or --direction, one of the two")
    if len(plus) != len(minus):
        raise ConfigError(f"{len(plus)} --add and {len(minus)} --subtract came; give one of each for a pair")
    check_output(out, grid)
    signer = configured_signer()

    from gigagan.editing import Directions, difference, move
    from gigagan.editing.tensor_file import check_model
    from gigagan.models.latents import Latents

    pipe, psi_, (source,) = _opened(model, device, psi, start, seeds=seeds)
    what: dict[str, object]
    if direction is not None:
        found = Directions.read(direction[0])
        check_model(direction[0], found.model, pipe)
        step, what = found.step(direction[1]), {"direction": direction[1], "directions": direction[0].name}
        added = slug(direction[1])
    else:
        # The conditional mean: what a prompt has whatever the seed.
        more, less = ([Source.of(text, pipe) for text in texts] for texts in (plus, minus))
        a, b = (Latents.join([one.latents(pipe, 0, 0.0) for one in group]) for group in (more, less))
        step, what = difference(a, b), {"add": [one.name for one in more], "subtract": [one.name for one in less]}
        added = more[0].slug

    def cells() -> Iterator[Cell]:
        for seed in numbers:
            point = source.latents(pipe, seed, psi_)
            for amount in amounts:
                info = edited(pipe, source, seed, psi_, "arithmetic", strength=amount, **what)
                stem = f"{source.slug}-{seed}-plus-{added}-{amount:g}"
                yield Cell(move(point, step.to(point.ws), amount), info, stem)

    columns = [f"{amount:+g}" if amount else "0" for amount in amounts]
    deliver(pipe, cells(), [f"{source.name}, seed {n}" for n in numbers], columns, out, grid, signer)


def parse_strengths(text: str) -> list[float]:
    """Numbers of "-1,0,0.5", in order. Raises ConfigError for anything else and beyond MAX_STRENGTH."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", part, re.ASCII):
            raise ConfigError(f"--strengths {text}: {part!r} isn't a number; write -1,0,0.5")
        if abs(float(part)) > MAX_STRENGTH:
            raise ConfigError(f"--strengths {text}: expected -{MAX_STRENGTH} to {MAX_STRENGTH}; write -1,0,0.5")
    return list(dict.fromkeys(float(part) for part in parts))


def _seeds(seeds: str | None, *, again: bool = False) -> list[int]:
    return [0] if seeds is None else parse_seeds(seeds, again=again)


def _opened(
    model: str, device: str, psi: float | None, *texts: str, seeds: str | None
) -> "tuple[Pipeline, float, list[Source]]":
    """The model, psi, and where each text's points come from."""
    from gigagan.pipeline import DEFAULT_PSI, Pipeline
    from gigagan.request import check_psi

    psi_ = check_psi(DEFAULT_PSI if psi is None else psi)
    pipe = Pipeline.from_pretrained(model, device=device)
    sources = [Source.of(text, pipe) for text in texts]
    check_seeds(sources, seeds, psi)
    return pipe, psi_, sources
