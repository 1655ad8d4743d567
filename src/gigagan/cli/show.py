"""gigagan show: what a generated picture says about itself."""

from pathlib import Path

import click

from gigagan.cli.files import printable
from gigagan.errors import DataError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Print what a generated picture says about itself: prompt, seed, psi, model and version.

    Of a film (WebP, GIF) its prompts, seeds and the options of `gigagan video`. Of a picture that is signed (C2PA) also
    by whom, and whether it is still as it was signed.
    """
    from gigagan.metadata import read_info
    from gigagan.provenance import read_signature

    signature = read_signature(file)
    try:
        info = read_info(file) | signature
    except DataError:
        if not signature:
            raise
        info = signature
    if as_json:
        import json

        print(json.dumps(info, ensure_ascii=False))
        return
    for key, value in info.items():
        for line in value.split("\n") if key in ("prompts", "edits") else [value]:
            print(f"{key}: {printable(line)}")
