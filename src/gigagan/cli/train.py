"""gigagan train: a preset, overrides, a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.cli.presets import PRESETS

if TYPE_CHECKING:
    from gigagan.config import RunConfig


@click.command(epilog=PRESETS)
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run-dir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where everything is written."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto = the fastest found.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Same as train.dtype=...")
@click.option(
    "--nproc", type=click.IntRange(1), help="So many processes on this machine, started anew when one of them dies."
)
@click.option("--allow-change", multiple=True, metavar="KEY", help="Go on though this key, or `data`, is another now.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def train(
    preset: str,
    overrides: tuple[str, ...],
    run_dir: Path,
    device: str,
    dtype: str | None,
    nproc: int | None,
    allow_change: tuple[str, ...],
    dry_run: bool,
) -> int:
    """Train PRESET (a name or a .yaml file) with KEY=VALUE overrides.

    The same command again goes on where the run stopped. `gigagan config PRESET` lists every key. On several machines
    start it with torchrun (docs/scaling.md).
    """
    import logging
    import os

    from gigagan import config

    overrides = (*overrides, *([f"train.dtype={dtype}"] if dtype else []))
    cfg = config.load(preset, overrides)
    if dry_run:
        print(config.to_yaml(cfg), end="")
        return 0
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(level=logging.INFO, format="%(message)s" if rank == "0" else f"rank {rank}: %(message)s")
    if nproc is not None:
        arguments = [preset, *overrides, "--run-dir", str(run_dir), "--device", device]
        arguments += [word for key in allow_change for word in ("--allow-change", key)]
        return _launch(cfg, arguments, nproc, run_dir)

    from gigagan import dist
    from gigagan.training.loop import train as run

    place = dist.device(device)
    with dist.joined(place):
        if not cfg.data.path and dist.rank() == 0:
            click.echo("gigagan: data.path is empty: it trains on the few pictures in the package", err=True)
        ended_by = run(cfg, run_dir, device=place, allow=allow_change)
        if dist.rank() == 0:
            model = run_dir / "model"
            print(model if model.exists() else f"{run_dir}: no model yet; the same command goes on")
    return 128 + ended_by if ended_by else 0


def _launch(cfg: "RunConfig", arguments: list[str], nproc: int, run_dir: Path) -> int:
    import os
    import sys

    from gigagan.errors import ConfigError
    from gigagan.launch import launch

    if "RANK" in os.environ:
        raise ConfigError("--nproc under torchrun would start processes twice; leave it out")
    if cfg.train.batch % nproc:
        raise ConfigError(f"train.batch is {cfg.train.batch}, but --nproc is {nproc}; use a divisor")
    command = [sys.executable, "-m", "gigagan", "train", *arguments]
    attempts = run_dir / "attempts.txt"
    return launch(
        command,
        nproc,
        environment=os.environ,
        progress=lambda: attempts.read_bytes() if attempts.exists() else b"",
    )
