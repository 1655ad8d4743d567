"""`gigagan data weights`: fetch the frozen networks that training and measuring use."""

import click

NAMES = ("minilm", "lite0", "lite1")


@click.command()
@click.argument("name", type=click.Choice([*NAMES, "all"]), default="all")
def weights(name: str) -> None:
    """Download the weights of frozen networks into ~/.cache/gigagan, checked against pinned hashes."""
    from gigagan.data.weights import fetch

    for one in NAMES if name == "all" else (name,):
        click.echo(f"{one}: {fetch(one, progress=True)}")
