"""gigagan evaluate: a model's pictures beside real ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.cli.files import check_folders
from gigagan.data.places import write_whole

if TYPE_CHECKING:
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
def evaluate(
    model: str, data_path: Path, num: int, split: str, psi: float, json_path: Path | None, sheet_path: Path | None
) -> None:
    """Measure MODEL (a directory, or emoji: the one in the package), each figure beside the same of real pictures.

    What measures learns from real pictures of the data, once (minutes), and is kept in ~/.cache/gigagan. Prompts and
    seeds are fixed by the options: nothing is chosen after looking.
    """
    check_folders(json_path, sheet_path)

    import time

    from gigagan.evaluation import report
    from gigagan.evaluation.evaluate import evaluate as measure
    from gigagan.evaluation.evaluate import plan
    from gigagan.pipeline import Pipeline
    from gigagan.request import check_psi

    psi = check_psi(psi)
    pipe = Pipeline.from_pretrained(model, device="auto", upsampled=False)
    data, evaluator = open_evaluator(data_path, max(MIN_RES, pipe.resolution), pipe)
    requests = plan(evaluator.real, split, num)
    shown: list[Image] = []
    started = time.monotonic()
    figures = measure(_drawn(pipe, requests, psi, shown), requests, evaluator, data, progress=True)
    about = {
        "model": model,
        "model_hash": pipe.model_hash,
        "data": str(data_path),
        "evaluator_hash": evaluator.hash,
        "data_hash": evaluator.real.hash,
        "split": split,
        "num": sum(r.role == "main" for r in requests),
        "psi": psi,
        "resolution": pipe.resolution,
        "seconds": round(time.monotonic() - started, 1),
    }
    if json_path is not None:
        write_whole(json_path, report.as_json(figures, about).encode())
    if sheet_path is not None:
        write_whole(sheet_path, _sheet(shown, requests, pipe, psi))
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{report.table(figures)}\n")
    for name, text in report.PROTOCOL.items():
        print(f"{name}: {text}")


def open_evaluator(data_path: Path, resolution: int, pipe: "Pipeline") -> "tuple[Captioned, Evaluator]":
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
    network = FeatureNetwork(load_efficientnet_lite("lite1", pipe.device), pipe.device)
    text_encoder = build_text_encoder(TextConfig())
    assert isinstance(text_encoder, MiniLM)
    data_hash = f"{hash_data(data_path)} {resolution}"
    evaluator = prepare(data, data_hash, network, WEIGHTS["lite1"].sha256, text_encoder, progress=True)
    return data, evaluator


def _drawn(pipe: "Pipeline", requests: "Sequence[Request]", psi: float, shown: "list[Image]") -> "Iterator[Image]":
    """The requested pictures, [H, W, 3], a micro-batch at a time; the first are kept in `shown`."""
    size = pipe.micro_batch
    for start in range(0, len(requests), size):
        part = requests[start : start + size]
        output = pipe([r.text for r in part], seeds=[r.seed for r in part], truncation_psi=psi, output_type="pt")
        for img in output.pyramid[0].permute(0, 2, 3, 1).numpy():
            if len(shown) < SHEET_PICTURES:
                shown.append(img)
            yield img


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
