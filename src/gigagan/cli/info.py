"""`gigagan info`: what a preset costs, counted without allocating it."""

from typing import TYPE_CHECKING

import click

from gigagan.cli.presets import PRESETS

if TYPE_CHECKING:
    from gigagan.cost import Cost, NetworkCost


@click.command(epilog=PRESETS)
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, FLOPs and bytes as whole numbers.")
def info(preset: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print parameters, FLOPs and activation memory of PRESET by part and resolution.

    PRESET is a name from the package or a .yaml file. Nothing is allocated.

    Parameters are the trainable ones, without frozen encoders. FLOPs (2 a multiply-add) are those of one picture's
    forward pass as the equations have it: each kernel mixed once a sample, then one convolution; elementwise work,
    norms and resampling are left out. Activations are the bytes that a training pass keeps for its backward pass, for
    each picture, in the arithmetic of train.dtype.

    The step is one optimizer step of D and one of G, for each image of the batch, with R1's share of it: a product
    costs once forward and once more for each of its factors that needs a gradient.
    """
    import json

    from gigagan import config, cost

    cfg = config.load(preset, overrides)
    counted = cost.measure(cfg)
    if as_json:
        click.echo(json.dumps(counted.to_dict(), indent=2))
    else:
        click.echo(f"{preset}: {cfg.shown_side} px, {cfg.train.dtype}\n")
        click.echo(_table(counted))


def _table(cost: "Cost") -> str:
    head = f"{'':24}{'parameters':>15}{'MFLOP':>13}{'activations, MiB':>19}"
    step = cost.step
    return "\n".join(
        [
            head,
            *_rows("generator", cost.generator),
            *_rows("discriminator", cost.discriminator),
            f"{'step, each image':24}{'':15}{step.total / 1e6:>13,.1f}",
            f"{'  discriminator':24}{'':15}{step.discriminator / 1e6:>13,.1f}",
            f"{'  generator':24}{'':15}{step.generator / 1e6:>13,.1f}",
            f"{'  R1':24}{'':15}{step.r1 / 1e6:>13,.1f}",
        ]
    )


def _rows(name: str, network: "NetworkCost") -> list[str]:
    parts = {name: network.total} | {
        "  " + part.replace(".", " ").replace("text", "text layers"): cost for part, cost in network.parts.items()
    }
    return [
        f"{label:24}{cost.parameters:>15,}{cost.flops / 1e6:>13,.1f}{cost.activation_bytes / 2**20:>19,.2f}"
        for label, cost in parts.items()
    ]
