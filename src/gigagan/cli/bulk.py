"""gigagan generate --engine ray: tables of prompts to a folder or a bucket, a file a picture, resumable."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli.files import check_place, probe, slug
from gigagan.data.places import entries, is_far, read_bytes, size_of, sweep, write_whole
from gigagan.errors import ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from gigagan.ray_bulk import Picture

SUFFIX = ".parquet"
RECORD = "gigagan-bulk.json"
"""In the folder: what its pictures are of."""
WRITABLE = ("s3", "gs", "gcs", "az", "abfs")  # a file there appears whole; elsewhere nobody promises that
Pair = tuple[str, int]


def read_table(file: Path) -> tuple[list[str], list[int] | None]:
    """Its prompts and, where it has them, their seeds. Raises DataError for what is no such table."""
    import pyarrow
    from pyarrow import parquet

    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a table of prompts")
    try:
        found = parquet.read_schema(file).names
        table = parquet.read_table(file, columns=[name for name in ("prompt", "seed") if name in found])
        if "prompt" not in found:
            raise DataError(f"{file}: has no column prompt, but {', '.join(found) or 'none'}; name the prompts so")
        prompts = table["prompt"].cast(pyarrow.string()).to_pylist()
        seeds = table["seed"].cast(pyarrow.int64()).to_pylist() if "seed" in found else None
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: isn't a table of prompts ({str(error).splitlines()[0]}); expected Parquet") from None
    for name, column in (("prompt", prompts), ("seed", seeds or [])):
        if None in column:
            raise DataError(f"{file}: row {column.index(None)} has no {name}; give one, or leave the row out")
    if not prompts:
        raise PromptError(f"{file}: holds no prompt; write one a row")
    return prompts, seeds


def named(pairs: Sequence[Pair]) -> list["Picture"]:
    """Each pair once, under the name that `gigagan generate` gives it in an empty folder."""
    from gigagan.ray_bulk import Picture

    pictures: dict[str, Picture] = {}
    tried: Counter[str] = Counter()
    for prompt, seed in dict.fromkeys(pairs):
        stem = f"{slug(prompt)}-{seed}"
        name = f"{stem}.png"
        while name in pictures:
            tried[stem] += 1
            name = f"{stem}-{tried[stem]}.png"
        pictures[name] = Picture(name, prompt, seed)
    return list(pictures.values())


def check_out(out: Path) -> None:
    """Raises ConfigError for a place that can't be written to."""
    if not is_far(out):
        check_place(out, folder=True)
        probe(out)
    elif (scheme := str(out).partition("://")[0]) not in WRITABLE:
        raise ConfigError(f"{out}: {scheme}:// isn't written to; give a folder or one of {', '.join(WRITABLE)}")


def missing(pictures: Sequence["Picture"], out: Path, settings: dict[str, Any]) -> list["Picture"]:
    """What isn't there yet. Raises ConfigError where the folder holds something else under these names."""
    record = settings | {"prompts": _digest([(one.prompt, one.seed) for one in pictures])}
    there = {path.name for path in entries(out)}
    if RECORD in there:
        path = out / RECORD
        try:
            before = json.loads(read_bytes(path, 0, size_of(path)))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise DataError(f"{path}: isn't what gigagan wrote; give another --out")
        if changed := [key for key in record if before.get(key) != record[key]]:
            raise ConfigError(f"{out}: holds a run of other {' and '.join(changed)}; give another --out")
        return [one for one in pictures if one.name not in there]
    if strangers := [one.name for one in pictures if one.name in there]:
        raise ConfigError(f"{out}: holds {strangers[0]}, which isn't of such a run; give another --out")
    write_whole(out / RECORD, json.dumps(record, indent=2).encode() + b"\n")
    return list(pictures)


def _digest(pairs: Sequence[Pair]) -> str:
    sha = hashlib.sha256()
    for pair in pairs:
        sha.update(json.dumps(pair).encode() + b"\n")
    return sha.hexdigest()[:16]


def draw_all(pairs: Sequence[Pair], out: Path, options: dict[str, Any], psi: float, model: str, workers: int) -> None:
    """Draw what is missing and print its paths; `model`: the hash of the model. `cluster.prepare` came before."""
    from tqdm import tqdm

    from gigagan.cli.cluster import cluster, lent

    device, gpus = lent(options["device"])
    options = options | {"device": device}
    check_out(out)
    pictures = named(pairs)
    todo = missing(pictures, out, {"model": model, "psi": psi, "dtype": options["dtype"], "device": device})
    if len(todo) < len(pictures):
        click.echo(f"gigagan: {len(pictures) - len(todo)} of {len(pictures)} pictures are there already", err=True)
    if not todo:
        return

    from gigagan.ray_bulk import draw

    place = str(out if is_far(out) else out.absolute())
    with cluster(workers), tqdm(total=len(todo), unit="img", disable=None) as bar:
        for name in draw(todo, options, psi, place, workers=workers, gpus=gpus):
            tqdm.write(str(out / name), file=sys.stdout)
            bar.update()
    sweep(out)
    if left := {one.name for one in todo} - {path.name for path in entries(out)}:
        raise DataError(f"{out}: {len(left)} pictures are gone, {min(left)} among them; run the command again")
