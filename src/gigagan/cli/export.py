"""gigagan export: a model's networks as graphs for other runtimes, compared with PyTorch before they are kept."""

from pathlib import Path

import click

from gigagan.cli.files import check_place


@click.command()
@click.argument("model")
@click.option("--format", "format_", required=True, metavar="FORMAT", help="onnx, openvino, pt2 or aoti.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
def export(model: str, format_: str, out: Path) -> None:
    """Write the base, the upsampler and the text encoder of MODEL as graphs that need no PyTorch.

    MODEL is a directory, or emoji: the one in the package. Each graph takes any batch and is compared with PyTorch at
    batch 1 and 5; where one differs by more than 1e-4 nothing is written. What is exported to onnx or openvino draws by
    `gigagan generate --model DIR` too; docs/export.md has the rest.
    """
    check_place(out, folder=True)

    from gigagan.export import export as run
    from gigagan.export import table

    report = run(model, out, format=format_, progress=lambda part: click.echo(f"gigagan: {part}", err=True))
    print(table(report))
    print(out)
