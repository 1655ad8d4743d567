"""gigagan evaluate-upsampler: enlarged pictures beside true ones."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli.files import check_folders
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from gigagan.evaluation.upsampler import Measured

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
@click.option(
    "--inception",
    "inception_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="clean-fid's inception-2015-12-05.pt: FID and Inception score.",
)
def evaluate_upsampler(
    model: str,
    data_path: Path,
    num: int,
    split: str,
    json_path: Path | None,
    sheet_path: Path | None,
    inception_path: Path | None,
) -> None:
    """Measure the upsampler of MODEL on held-out pictures, beside bicubic and Lanczos.

    Each picture is reduced to the side that the network takes and enlarged to its own size again, under its own caption
    and under another picture's.
    """
    check_folders(json_path, sheet_path)
    import json

    from tqdm import tqdm

    from gigagan.checkpoint import load_model
    from gigagan.data.weights import fetch
    from gigagan.evaluation import upsampler as evaluation
    from gigagan.evaluation.features import FeatureNetwork
    from gigagan.evaluation.inception import Inception
    from gigagan.models.frozen import load_efficientnet_lite
    from gigagan.models.frozen_files import file_sha256
    from gigagan.upsampling.enlarger import Enlarger

    loaded = load_model(model, discriminator=False)
    if loaded.upsampler is None:
        raise ConfigError(f"{model}: holds no upsampler; give one that does")
    cfg = loaded.upsampler.cfg
    inception = None if inception_path is None else Inception(inception_path)
    items = evaluation.held_out(data_path, split=split, cfg=cfg, num=num)
    fetch("lite1", progress=True)
    network = FeatureNetwork(load_efficientnet_lite("lite1"))
    enlarger = Enlarger(loaded.upsampler, loaded.text_encoder)
    with tqdm(total=len(items), unit="picture", disable=None) as bar:
        measured = {
            side: evaluation.measure(alike, enlarger, network, inception=inception, progress=bar.update)
            for side, alike in evaluation.by_size(items).items()
        }
    split = "all" if str(data_path) == evaluation.PHOTOGRAPHS else split
    about = {"model": model, "model_hash": loaded.hash, "data": str(data_path), "split": split, "num": len(items)}
    protocol = evaluation.PROTOCOL
    if inception_path is not None:
        about["inception_hash"] = file_sha256(inception_path)
        protocol = protocol | evaluation.INCEPTION_PROTOCOL
    if json_path is not None:
        figures = {f"{side} px": _figures(one) for side, one in measured.items()}
        content = {**about, "protocol": protocol, **figures}
        write_whole(json_path, (json.dumps(content, indent=2) + "\n").encode())
    if sheet_path is not None:
        write_whole(sheet_path, _sheet(next(iter(measured.values())), cfg.input_resolution))
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    for side, one in measured.items():
        print(f"\n{cfg.input_resolution} to {side} px, {one.num} pictures\n{evaluation.table(one)}")
    print()
    for name, text in protocol.items():
        print(f"{name}: {text}")


def _sheet(measured: "Measured", side: int) -> bytes:
    """The first pictures as a PNG file."""
    import io

    from gigagan.grid import labelled_grid

    sheet = io.BytesIO()
    columns = [f"{side} px, bicubic", "upsampler", "true"]
    labelled_grid(measured.rows, rows=measured.captions, columns=columns).save(sheet, "PNG")
    return sheet.getvalue()


def _figures(measured: "Measured") -> dict[str, Any]:
    """Those that were measured, by method."""
    scores = {
        method: {name: value for name, value in asdict(one).items() if value is not None}
        for method, one in measured.scores.items()
    }
    return {"num": measured.num, "own_caption_wins": measured.own_caption_wins, **scores}
