"""`gigagan plan`: what a run takes on many devices, before they are rented."""

import click

from gigagan.cli.presets import PRESETS

MILLION = 1_000_000


@click.command(epilog=PRESETS)
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--gpus", type=click.IntRange(1), default=8, show_default=True, help="How many.")
@click.option("--gpu", default="h100", show_default=True, help="h100, h200, a100, l40s or rtx4090.")
@click.option(
    "--utilization", type=click.FloatRange(0.01, 1), default=0.3, show_default=True, help="Share of the peak FLOP/s."
)
@click.option("--price", type=click.FloatRange(0), default=2.5, show_default=True, help="Of a GPU for an hour.")
@click.option("--image-kb", type=click.FloatRange(0.1), default=100.0, show_default=True, help="A stored picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    preset: str,
    overrides: tuple[str, ...],
    gpus: int,
    gpu: str,
    utilization: float,
    price: float,
    image_kb: float,
    as_json: bool,
) -> None:
    """Say what training PRESET takes: memory a GPU, images a second, days, money, data and disk.

    FLOPs are counted exactly and memory is modeled; the speed follows from --utilization, which only a run on such a
    machine can tell. Set the length with train.total_kimg=...
    """
    import json

    from gigagan import config
    from gigagan.errors import ConfigError
    from gigagan.plan import DEVICES, left_out
    from gigagan.plan import plan as compute

    if gpu not in DEVICES:
        raise ConfigError(f"--gpu is {gpu}; known: {', '.join(DEVICES)}")
    cfg = config.load(preset, overrides)
    images = cfg.train.total_kimg * 1000
    found = compute(
        cfg, gpus=gpus, gpu=gpu, utilization=utilization, images=images, price=price, image_bytes=image_kb * 1000
    )
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    print(f"{preset}: {cfg.generator.resolution} px, {cfg.train.dtype}, {gpus} x {gpu}, {found.at_once} at once\n")
    print(f"{'memory of a GPU, GB':24}{'weights':>10}{'gradients':>11}{'Adam':>8}{'activations':>13}{'all':>9}")
    for name, memory in found.memory.items():
        title = {"ddp": "DDP", "fsdp": "FSDP2 (train.shard_G)"}[name]
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
        row = "".join(f"{part / 1e9:>{width}.2f}" for part, width in zip(parts, (10, 11, 8, 13, 9), strict=True))
        print(f"{title:24}{row}{'' if found.fits[name] else '  does not fit'}")
    print(f"\nFLOPs an image       {found.flops_an_image / 1e9:,.1f} G")
    print(f"images a second      {found.images_a_second:,.0f} at {utilization:.0%} of the peak")
    print(f"{images / MILLION:,.1f} M images".ljust(21) + f"{found.days:,.1f} days, {found.gpu_hours:,.0f} GPU hours")
    print(f"price                {found.cost:,.2f} at {price:g} a GPU hour")
    print(f"data                 {found.data_bytes_a_second / 1e6:,.0f} MB a second")
    print(f"a training state     {found.checkpoint_bytes / 1e9:,.1f} GB")
    print(f"not counted          {', '.join(left_out(cfg))}")
