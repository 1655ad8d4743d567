"""`gigagan data index` and `gigagan data stats`: one file for a large set, and what it says of the samples."""

from pathlib import Path

import click

from gigagan.cli.files import probe


@click.command()
@click.argument("path")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write: NAME.index")
def index(path: str, out: Path) -> None:
    """Index the set at PATH (a path or URL) once: where each sample is, its size, caption length and stored scores.

    The file takes the set's place: data.path=NAME.index opens at once at any size, and can be filtered (data.keep).
    """
    from gigagan.data.dataset import open_dataset
    from gigagan.data.index import INDEX_SUFFIX, write_index
    from gigagan.data.places import place
    from gigagan.errors import ConfigError

    if out.suffix != INDEX_SUFFIX:
        raise ConfigError(f"{out}: an index is named *{INDEX_SUFFIX}; give --out {out.stem}{INDEX_SUFFIX}")
    probe(out.parent)
    dataset = open_dataset(path)
    base = place(path)
    count = write_index(dataset.source, base if "://" in path else base.resolve(), out, progress=True)
    left_out = len(dataset) - count + len(dataset.faults)
    print(f"{out}: {count:,} samples, {out.stat().st_size / 2**20:,.1f} MiB; {left_out:,} can't be used")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Page with plots to write (HTML).")
def stats(file: Path, out: Path | None) -> None:
    """Say what the samples of an index FILE are like: sizes, caption lengths and scores, as text and as a page."""
    from gigagan.data.dataset import open_dataset
    from gigagan.data.index import IndexedSource
    from gigagan.data.stats import page, summary
    from gigagan.errors import DataError

    source = open_dataset(file).source
    if not isinstance(source, IndexedSource):
        raise DataError(f"{file}: isn't an index; make one with `gigagan data index`")
    spreads = summary(source)
    print(f"{file}: {len(source):,} samples")
    for spread in spreads:
        points = ", ".join(f"{name} {value:g}" for name, value in spread.points.items())
        print(f"{spread.title}: {points}" + (f"; {spread.missing:,} without" if spread.missing else ""))
    if out is not None:
        out.write_text(page(str(file), len(source), spreads), encoding="utf-8")
        print(out)
