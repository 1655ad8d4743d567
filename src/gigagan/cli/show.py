"""gigagan show: what a generated picture says about itself."""

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Print what a generated picture says about itself: prompt, seed, psi, model and version."""
    from gigagan.metadata import read_info

    info = read_info(file)
    if as_json:
        import json

        print(json.dumps(info, ensure_ascii=False))
        return
    for key, value in info.items():
        # A file can hold anything, but not steer the terminal.
        print(f"{key}: {''.join(c if c.isprintable() else ' ' for c in value)}")
