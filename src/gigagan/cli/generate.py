"""gigagan generate: prompts and seeds to picture files, or to one labeled sheet."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli.cells import DEVICE, MODEL, check_output, tell_cut
from gigagan.cli.files import probe, save_new, slug, typed
from gigagan.cli.signing import CERT, Sign, configured_signer, signing
from gigagan.data.places import place, write_whole
from gigagan.errors import ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from gigagan.pipeline import Pipeline, PipelineOutput

MAX_PICTURES = 1_000_000


@click.command()
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--prompts",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="More, one a line; with --engine ray also a .parquet with a column prompt and, where it likes, seed.",
)
@click.option(
    "--class", "classes", multiple=True, metavar="NAME", help="Of a model that knows classes; more than once."
)
@click.option(
    "--seeds",
    metavar="LIST",
    help="Such as 7, 0-15 or 0,1,4-6; each prompt with each.  [default: one, drawn; with --engine ray 0]",
)
@click.option(
    "--psi", type=float, help="Truncation: 1 = none, less = more typical pictures, 0 = the typical one.  [default: 0.7]"
)
@click.option(
    "--out",
    default="out",
    show_default=True,
    metavar="FOLDER",
    help="For PROMPT-SEED.png. A file that holds another picture stays; the new one gets -1, -2 ... "
    "With --engine ray also a URL such as s3://bucket/folder.",
)
@click.option(
    "--grid", type=click.Path(path_type=Path), metavar="FILE", help="Write one labeled sheet instead, and replace FILE."
)
@click.option(
    "--enlarge",
    type=click.Choice(["lanczos", "nearest"]),
    default="lanczos",
    show_default=True,
    help="How a sheet shows small pictures larger.",
)
@click.option("--levels", is_flag=True, help="Also write the smaller pictures that the generator makes on its way.")
@MODEL
@DEVICE
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Arithmetic."
)
@click.option("--compile", "compiled", is_flag=True, help="By torch.compile: a minute or more first, then faster.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: many prompts by many processes, on this machine or the cluster at RAY_ADDRESS; run again, it goes on.",
)
@click.option("--workers", type=click.IntRange(1, 10_000), help="With --engine ray.  [default: one a core, or a GPU]")
def generate(
    prompts: tuple[str, ...],
    files: tuple[Path, ...],
    classes: tuple[str, ...],
    seeds: str | None,
    psi: float | None,
    out: str,
    grid: Path | None,
    enlarge: str,
    levels: bool,
    model: str,
    device: str,
    dtype: str,
    compiled: bool,
    engine: str,
    workers: int | None,
) -> None:
    """Draw each PROMPT with each seed and print the paths of the pictures.

    A model that knows classes is asked by --class, an unconditional one for nothing at all.
    The same prompt, seed, psi and model give the same picture; `gigagan show FILE` prints them.
    """
    if classes and (prompts or files):
        raise ConfigError("prompts and --class both came; give one of them")
    numbers = parse_seeds(seeds) if seeds is not None else []
    _check_sheet(grid, levels=levels)
    signer = configured_signer()
    if engine == "ray":
        for option, given in (("--grid", grid), ("--levels", levels), (CERT, signer)):
            if given:
                raise ConfigError(f"{option} came with --engine ray, which writes plain files alone; leave it out")
        options = {"path": model, "device": device, "dtype": dtype, "compiled": compiled}
        _by_ray([*prompts, *classes], files, numbers, psi, out, options, workers or 0, by_class=bool(classes))
        return
    if workers is not None:
        raise ConfigError("--workers came without --engine ray; give both, or leave it out")
    wanted = [*prompts, *(line for file in files for line in _read_prompts(file))]
    check_number(wanted, numbers)
    folder = _local(out)
    check_output(folder, grid)

    from gigagan.pipeline import DEFAULT_PSI, Pipeline
    from gigagan.request import check_prompts, check_psi, fresh_seeds

    psi = check_psi(DEFAULT_PSI if psi is None else psi)
    wanted = list(dict.fromkeys(check_prompts([*wanted, *classes]))) if wanted or classes else []
    numbers = numbers or fresh_seeds(1)
    pipe = Pipeline.from_pretrained(model, device=device, dtype=dtype, compiled=compiled)
    wanted = _known(pipe, wanted, by_class=bool(classes))
    sign = signing(signer, pipe.model_hash)
    if grid is not None:
        probe(grid.parent)
        sheet = _sheet_bytes(pipe, wanted, numbers, psi, enlarge)
        write_whole(grid, sign(sheet))
        print(grid)
    else:
        probe(folder)
        _draw_files(pipe, wanted, numbers, psi, folder, levels, sign)


def _check_sheet(grid: Path | None, *, levels: bool) -> None:
    """Raises ConfigError for an option that is without effect with a sheet, or without one."""
    if grid is not None and levels:
        raise ConfigError("--levels writes picture files and --grid writes none; give one of them")
    if grid is None and typed("enlarge"):
        raise ConfigError("--enlarge is how a sheet shows small pictures, and --grid didn't come; leave it out")


def _local(out: str) -> Path:
    if "://" in out:
        raise ConfigError(f"--out {out}: a URL is for --engine ray; give a folder, or both")
    return Path(out)


def check_number(prompts: "Sequence[object]", seeds: "Sequence[int]") -> None:
    """Raises ConfigError for more pictures than a run draws."""
    if len(prompts) * max(len(seeds), 1) > MAX_PICTURES:
        raise ConfigError(f"{len(prompts)} prompts with {len(seeds)} seeds are more than {MAX_PICTURES:,} pictures")


def _by_ray(
    asked: list[str],
    files: tuple[Path, ...],
    seeds: list[int],
    psi: float | None,
    out: str,
    options: dict[str, Any],
    workers: int,
    *,
    by_class: bool,
) -> None:
    """The same prompts and those of tables, each with its own seed or each of `seeds`."""
    from gigagan.cli.bulk import SUFFIX, check_out, draw_all, read_table
    from gigagan.cli.cluster import prepare

    prepare()
    folder = place(out)
    check_out(folder)
    pairs: list[tuple[str, int]] = []
    free = list(asked)
    for file in files:
        if file.suffix.lower() != SUFFIX:
            free += _read_prompts(file)
            continue
        prompts, own = read_table(file)
        if own is None:
            free += prompts
        elif seeds:
            raise ConfigError(f"{file}: has seeds, and --seeds came; give one of them")
        else:
            pairs += zip(prompts, own, strict=True)
    check_number([*free, *pairs], seeds)

    from gigagan.checkpoint import portable
    from gigagan.pipeline import DEFAULT_PSI, Pipeline
    from gigagan.request import check_prompts, check_psi, check_seed

    psi = check_psi(DEFAULT_PSI if psi is None else psi)
    pairs = [(prompt, seed) for prompt in free for seed in seeds or [0]] + pairs
    for _, seed in pairs:
        check_seed(seed)
    pipe = Pipeline.from_pretrained(options["path"], dtype=options["dtype"], upsampled=False)
    known = list(dict.fromkeys(prompt for prompt, _ in pairs))
    known = _known(pipe, check_prompts(known) if known else [], by_class=by_class)
    pairs = pairs or [(known[0], seed) for seed in seeds or [0]]  # an unconditional model is asked for nothing
    draw_all(pairs, folder, options | {"path": portable(options["path"])}, psi, pipe.model_hash, workers)


def _known(pipe: "Pipeline", wanted: list[str], *, by_class: bool) -> list[str]:
    """The prompts, once it is clear that the model takes such ones: texts, classes or none."""
    kind = pipe.text_encoder.name
    if by_class and kind != "classes":
        raise ConfigError("--class came, but this model knows no classes; give a prompt")
    if not wanted and kind != "none":
        given = "--class NAME" if kind == "classes" else "at least one, or --prompts FILE"
        raise PromptError(f"no prompt came; give {given}")
    wanted = pipe.check(wanted)
    if kind == "classes":
        pipe.text_encoder.encode(wanted)  # an unknown class is told before anything is drawn
    tell_cut(pipe, wanted)
    return wanted


def parse_seeds(text: str, *, option: str = "--seeds", again: bool = False) -> list[int]:
    """Seeds of "7", "0-15" or "0,1,4-6", in order, each once or `again`. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if not match:
            raise ConfigError(f"{option} {text}: {part.strip()!r} isn't a {option[2:-1]}; write 7, 0-15 or 0,1,4-6")
        # Digits are counted first: Python refuses to read a number of thousands of them.
        first, last = (int(x) if len(x) < 20 else 2**64 for x in (match[1], match[2] or match[1]))
        if last >= 2**63:
            raise ConfigError(f"{option} {text}: a {option[2:-1]} is at most {2**63 - 1}")
        if last < first:
            raise ConfigError(f"{option} {text}: {part.strip()} runs backward; write {last}-{first}")
        if len(seeds) + last - first >= MAX_PICTURES:
            raise ConfigError(f"{option} {text}: more than {MAX_PICTURES:,} of them; give fewer")
        seeds += range(first, last + 1)
    return seeds if again else list(dict.fromkeys(seeds))


def _read_prompts(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        raise ConfigError(f"{file}: a table is for --engine ray; give both, or a text of one prompt a line")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: isn't UTF-8 text; expected one prompt a line") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise PromptError(f"{file}: holds no prompt; write one a line")
    return lines


def _draw_files(
    pipe: "Pipeline", prompts: list[str], seeds: list[int], psi: float, out: Path, levels: bool, sign: Sign
) -> None:
    from tqdm import tqdm

    from gigagan.metadata import png_bytes

    for output in _drawn(pipe, prompts, seeds, psi):
        for resolution in output.resolutions if levels else output.resolutions[:1]:
            for prompt, seed, image in zip(output.prompts, output.seeds, output.level(resolution), strict=True):
                name = f"{slug(prompt)}-{seed}" + (f"-{resolution}px" if resolution != output.resolutions[0] else "")
                path = save_new(out, name, png_bytes(image, pipe.info(prompt, seed, psi, resolution)), sign)
                tqdm.write(str(path), file=sys.stdout)


def _sheet_bytes(pipe: "Pipeline", prompts: list[str], seeds: list[int], psi: float, enlarge: str) -> bytes:
    from gigagan.grid import captioned_sheet, captioned_size, check_size, grid_size, labelled_grid
    from gigagan.metadata import sheet_bytes

    side = pipe.resolution
    check_size(captioned_size(len(prompts), side) if len(seeds) == 1 else grid_size(len(prompts), len(seeds), side))
    images: list[Image] = [image for output in _drawn(pipe, prompts, seeds, psi) for image in output.images]
    if len(seeds) == 1:
        sheet = captioned_sheet(images, prompts, enlarge=enlarge)
    else:
        rows = [images[start : start + len(seeds)] for start in range(0, len(images), len(seeds))]
        sheet = labelled_grid(rows, prompts, [f"seed {seed}" for seed in seeds], enlarge=enlarge)
    said = {
        "prompts": "\n".join(prompts),
        "seeds": ",".join(map(str, seeds)),
        "psi": str(psi),
        "model": pipe.model_hash,
    }
    return sheet_bytes(sheet, said)


def _drawn(pipe: "Pipeline", prompts: list[str], seeds: list[int], psi: float) -> "Iterator[PipelineOutput]":
    """Each prompt with each seed, in that order, a micro-batch at a time under a progress bar."""
    from tqdm import tqdm

    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    size = pipe.micro_batch
    with tqdm(total=len(pairs), unit="img", disable=None) as bar:
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            asked = [prompt for prompt, _ in part] if prompts != [""] else None
            yield pipe(asked, seeds=[seed for _, seed in part], truncation_psi=psi)
            bar.update(len(part))
