"""gigagan evaluate: a model's pictures beside real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gigagan.cli.canonical import NUM, canonical_figures, open_judges
from gigagan.cli.drawing import Drawing
from gigagan.cli.files import check_folders
from gigagan.data.places import write_whole

if TYPE_CHECKING:
    import torch

    from gigagan.evaluation.evaluate import Image, Request
    from gigagan.evaluation.evaluator import Evaluator
    from gigagan.evaluation.real import Captioned
    from gigagan.pipeline import Pipeline

SHEET_PICTURES = 54  # six of each of nine styles
MIN_RES = 64
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("model")
@click.option("--data", "data_path", type=click.Path(path_type=Path), required=True, help="Data set to measure by.")
@click.option(
    "--num",
    type=click.IntRange(min=4),
    default=450,
    show_default=True,
    help="Prompts, as many of each style; at most half of the training pictures.",
)
@click.option(
    "--split", default="train", show_default=True, help="Whose captions are drawn: train, test_pair, test_concept."
)
@click.option("--psi", type=float, default=1.0, show_default=True, help="Truncation; 1 = none.")
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the figures here.")
@click.option("--sheet", "sheet_path", type=FILE, metavar="FILE", help="Write the first pictures here, as PNG.")
@click.option(
    "--page", "page_path", type=FILE, metavar="FILE", help="Write figures and pictures here, as one HTML page."
)
@click.option(
    "--inception",
    "inception_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="clean-fid's inception-2015-12-05.pt: FID, against the whole split, and Inception score.",
)
@click.option(
    "--clip",
    "clip_path",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A CLIP of transformers: CLIP score.",
)
@click.option(
    "--fid-num",
    type=click.IntRange(min=10),
    show_default=str(NUM),
    help="Pictures drawn for --inception and --clip, each caption as often as the split has it.",
)
def evaluate(
    model: str,
    data_path: Path,
    num: int,
    split: str,
    psi: float,
    json_path: Path | None,
    sheet_path: Path | None,
    page_path: Path | None,
    inception_path: Path | None,
    clip_path: Path | None,
    fid_num: int | None,
) -> None:
    """Measure MODEL (a directory, or emoji: the one in the package), each figure beside the same of real pictures.

    What measures learns from real pictures of the data, once (minutes), and is kept in ~/.cache/gigagan. Prompts and
    seeds are fixed by the options: nothing is chosen after looking.
    """
    check_folders(json_path, sheet_path, page_path)

    import time

    from gigagan.evaluation import canonical, page, report
    from gigagan.evaluation.evaluate import evaluate as measure
    from gigagan.evaluation.evaluate import plan
    from gigagan.pipeline import Pipeline
    from gigagan.request import check_psi

    psi = check_psi(psi)
    pipe = Pipeline.from_pretrained(model, device="auto", upsampled=False)
    judges = open_judges(inception_path, clip_path, fid_num, pipe.device)
    data, evaluator = open_evaluator(data_path, max(MIN_RES, pipe.resolution), pipe.device)
    requests = plan(evaluator.real, split, num)
    drawing = Drawing(pipe, requests, psi, num_first=SHEET_PICTURES, keep=page_path is not None)
    started = time.monotonic()
    measured = measure(drawing, requests, evaluator, data, progress=True)
    about: dict[str, Any] = {"model": model, "data": str(data_path), "split": split}
    about |= _said(drawing, evaluator) | {"seconds": round(time.monotonic() - started, 1)}
    protocol = report.PROTOCOL
    if judges is not None:
        measured.figures.extend(canonical_figures(model, data_path, split, psi, judges))
        about, protocol = about | judges.about, protocol | canonical.PROTOCOL
    if json_path is not None:
        write_whole(json_path, report.as_json(measured.figures, about, protocol).encode())
    if sheet_path is not None:
        write_whole(sheet_path, _sheet(drawing.first, requests, pipe, psi))
    if page_path is not None:
        told = about, protocol
        write_whole(page_path, page.as_html(measured, requests, drawing.kept, evaluator.real, data, *told).encode())
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{report.table(measured.figures)}\n")
    for name, text in protocol.items():
        print(f"{name}: {text}")


def _said(drawing: Drawing, evaluator: "Evaluator") -> dict[str, Any]:
    """What was drawn, and what measures it."""
    import torch

    return {
        "num": sum(r.role == "main" for r in drawing.requests),
        "psi": drawing.psi,
        "resolution": drawing.pipe.resolution,
        "model_hash": drawing.pipe.model_hash,
        "evaluator_hash": evaluator.hash,
        "data_hash": evaluator.real.hash,
        "device": str(drawing.pipe.device),
        "threads": torch.get_num_threads(),
        "seconds_per_picture": round(drawing.seconds / len(drawing.requests), 4),
    }


def open_evaluator(data_path: Path, resolution: int, device: "torch.device") -> "tuple[Captioned, Evaluator]":
    """The data's pictures at a resolution, and what measures by them."""
    from gigagan.config import TextConfig
    from gigagan.data.dataset import open_dataset
    from gigagan.data.weights import WEIGHTS, fetch
    from gigagan.evaluation.evaluator import prepare
    from gigagan.evaluation.features import FeatureNetwork
    from gigagan.evaluation.real import hash_data
    from gigagan.models.frozen import MiniLM, build_text_encoder, load_efficientnet_lite

    data = open_dataset(data_path, resolution=resolution)
    fetch("lite1", progress=True)
    network = FeatureNetwork(load_efficientnet_lite("lite1", device), device)
    text_encoder = build_text_encoder(TextConfig())
    assert isinstance(text_encoder, MiniLM)
    data_hash = f"{hash_data(data_path)} {resolution}"
    evaluator = prepare(data, data_hash, network, WEIGHTS["lite1"].sha256, text_encoder, progress=True)
    return data, evaluator


def _sheet(shown: "list[Image]", requests: "Sequence[Request]", pipe: "Pipeline", psi: float) -> bytes:
    from PIL import Image

    from gigagan.grid import captioned_sheet
    from gigagan.metadata import sheet_bytes

    main = [r for r in requests if r.role == "main"][: len(shown)]
    sheet = captioned_sheet([Image.fromarray(image) for image in shown[: len(main)]], [r.text for r in main])
    said = {
        "prompts": "\n".join(r.text for r in main),
        "seeds": ",".join(str(r.seed) for r in main),
        "psi": str(psi),
        "model": pipe.model_hash,
    }
    return sheet_bytes(sheet, said)
