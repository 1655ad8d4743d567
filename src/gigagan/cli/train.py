"""gigagan train: a preset, overrides, a run directory."""

from pathlib import Path

import click


@click.command()
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run-dir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where everything is written."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto = the fastest found.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Same as train.dtype=...")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def train(
    preset: str, overrides: tuple[str, ...], run_dir: Path, device: str, dtype: str | None, dry_run: bool
) -> None:
    """Train PRESET (a name or a .yaml file) with KEY=VALUE overrides.

    The same command again goes on where the run stopped. `gigagan config PRESET` lists every key.
    """
    from gigagan import config

    cfg = config.load(preset, (*overrides, *([f"train.dtype={dtype}"] if dtype else [])))
    if dry_run:
        print(config.to_yaml(cfg), end="")
        return

    import logging

    from gigagan import dist
    from gigagan.training.loop import train as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(cfg, run_dir, device=dist.device(device))
    print(f"{run_dir}/model")
