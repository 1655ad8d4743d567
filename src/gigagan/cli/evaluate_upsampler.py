"""gigagan evaluate-upsampler: enlarged pictures beside true ones."""

from pathlib import Path

import click

from gigagan.cli.files import check_folders
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("evaluate-upsampler")
@click.argument("model")
@click.option(
    "--data",
    "data_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Data set to measure by, or photographs: those of a Debian package, fetched (161 MB).",
)
@click.option("--num", type=click.IntRange(min=2), default=100, show_default=True, help="Pictures of each size.")
@click.option("--split", default="test_pair", show_default=True, help="Whose pictures are taken.")
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the figures here.")
@click.option("--sheet", "sheet_path", type=FILE, metavar="FILE", help="Write the first pictures here, as PNG.")
def evaluate_upsampler(
    model: str, data_path: Path, num: int, split: str, json_path: Path | None, sheet_path: Path | None
) -> None:
    """Measure the upsampler of MODEL on held-out pictures, beside bicubic and Lanczos.

    Each picture is reduced to the side that the network takes and enlarged to its own size again, under its own caption
    and under another picture's.
    """
    check_folders(json_path, sheet_path)
    import io
    import json
    from dataclasses import asdict

    from tqdm import tqdm

    from gigagan.checkpoint import load_model
    from gigagan.data.weights import fetch
    from gigagan.evaluation import upsampler as evaluation
    from gigagan.evaluation.features import FeatureNetwork
    from gigagan.grid import labelled_grid
    from gigagan.models.frozen import load_efficientnet_lite
    from gigagan.upsampling.enlarger import Enlarger

    loaded = load_model(model, discriminator=False)
    if loaded.upsampler is None:
        raise ConfigError(f"{model}: holds no upsampler; give one that does")
    cfg = loaded.upsampler.cfg
    items = evaluation.held_out(data_path, split=split, cfg=cfg, num=num)
    fetch("lite1", progress=True)
    network = FeatureNetwork(load_efficientnet_lite("lite1"))
    enlarger = Enlarger(loaded.upsampler, loaded.text_encoder)
    with tqdm(total=len(items), unit="picture", disable=None) as bar:
        measured = {
            side: evaluation.measure(alike, enlarger, network, progress=bar.update)
            for side, alike in evaluation.by_size(items).items()
        }
    split = "all" if str(data_path) == evaluation.PHOTOGRAPHS else split
    about = {"model": model, "model_hash": loaded.hash, "data": str(data_path), "split": split, "num": len(items)}
    if json_path is not None:
        figures = {
            f"{side} px": {"num": one.num, "own_caption_wins": one.own_caption_wins}
            | {method: asdict(scores) for method, scores in one.scores.items()}
            for side, one in measured.items()
        }
        content = {**about, "protocol": evaluation.PROTOCOL, **figures}
        write_whole(json_path, (json.dumps(content, indent=2) + "\n").encode())
    if sheet_path is not None:
        columns = [f"{cfg.input_resolution} px, bicubic", "upsampler", "true"]
        first = next(iter(measured.values()))
        sheet = io.BytesIO()
        labelled_grid(first.rows, rows=first.captions, columns=columns).save(sheet, "PNG")
        write_whole(sheet_path, sheet.getvalue())
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    for side, one in measured.items():
        print(f"\n{cfg.input_resolution} to {side} px, {one.num} pictures\n{evaluation.table(one)}")
    print()
    for name, text in evaluation.PROTOCOL.items():
        print(f"{name}: {text}")
