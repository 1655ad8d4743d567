"""`gigagan data heads`: what the contrastive loss uses where there is no CLIP, and what reads the emoji set's style."""

from pathlib import Path

import click

from gigagan.cli.files import probe


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--resolution",
    type=click.IntRange(32, 512),
    default=128,
    show_default=True,
    help="Side at which training shows pictures to the network: vision.resolution, or their own where that is larger.",
)
@click.option("--split", default="train", show_default=True, help="Split to learn from.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights and order.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto = the fastest found.")
def heads(path: Path, out: Path, resolution: int, split: str, seed: int, device: str) -> None:
    """Train heads over MiniLM and EfficientNet-Lite0 that put a picture and its caption at PATH in one place.

    Of the emoji set they read styles as well. They serve loss.clip_weight and style_weight, given as
    vision.heads=FILE. Needs `gigagan data weights lite0`.
    """
    from gigagan import dist
    from gigagan.config import TextConfig
    from gigagan.data.dataset import open_dataset
    from gigagan.errors import DataError
    from gigagan.models.frozen import MiniLM, build_text_encoder, load_efficientnet_lite
    from gigagan.training.contrast import save_heads
    from gigagan.training.heads import train_heads

    probe(out.parent)
    where = dist.device(device)
    network = load_efficientnet_lite("lite0", where)
    text_encoder = build_text_encoder(TextConfig(), where)
    assert isinstance(text_encoder, MiniLM)
    dataset = open_dataset(path, split=split)
    trained = train_heads(dataset, network, text_encoder, resolution=resolution, seed=seed, progress=True)
    try:
        save_heads(out, trained.heads, trained.others, resolution=resolution)
    except OSError as error:
        raise DataError(f"{out}: can't be written ({error.strerror or error}); give another --out") from None
    styles = "" if trained.styles_read is None else f", style read of {trained.styles_read:.1%}"
    print(
        f"{out}: {len(trained.others):,} captions; R@1 {trained.recall:.1%} of {trained.kept_back:,} pictures "
        f"kept back{styles}, {out.stat().st_size / 2**20:,.1f} MiB"
    )
