"""gigagan-pytorch and ours, trained on the same pictures for the same CPU time of one thread, and measured alike.

    gigagan data emoji --out DATA --resolution 64 && gigagan data encode DATA --out FEATURES
    gigagan data heads DATA --out HEADS --resolution 64 && gigagan data weights lite0
    python benchmarks/peer_training.py peer --data DATA --features FEATURES --runs RUNS
    python benchmarks/peer_training.py ours --data DATA --features FEATURES --runs RUNS --heads HEADS
    python benchmarks/peer_training.py table --plot FILE

in the environment of `make bench-env`. Ours is the preset of the released model from its beginning; the peer is its
small configuration with its own steps and rates. Both read captions as MiniLM's features, kept in a file, and draw from
the same training split. Stopped and started again, each goes on from its last measured point.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ablation import NUM_PROMPTS, cpu_sec, gigagan, keep, measure, picked, read
from peers import SMALL, gigagan_small, looked_up
from torch import Tensor

RESULTS = Path(__file__).with_name("peer_training.json")
RESOLUTION = 64
BATCH = 8
"""Of the peer: in its few hundred steps more of them serve it better than larger ones."""
PENALTY_EVERY = 4
"""D steps, the peer's own default."""
CPU_SEC = 7200.0
PEER_POINTS = (900.0, 3600.0, CPU_SEC)
"""CPU-seconds at which the peer is measured."""
OURS_KIMG = (5.0, 20.0, 40.0, 100.0)
"""Where ours is measured, and once more at the end of its time, to which its rate falls from the last of them."""


def train_peer(arguments: argparse.Namespace) -> None:
    """Its D and G steps in turns; at each point what the evaluator asks for is drawn.

    By its averaged generator, which lags behind in so few steps, and by the plain one: the better one's figures count.
    """
    from gigagan.cli.evaluate import open_evaluator
    from gigagan.config import DataConfig, TextConfig
    from gigagan.data.dataset import open_for_training
    from gigagan.data.features import CaptionFeatures
    from gigagan.data.loader import batches
    from gigagan.models.frozen import build_text_encoder

    torch.manual_seed(arguments.seed)
    texts = CaptionFeatures(build_text_encoder(TextConfig()), preload=arguments.features)
    gan = gigagan_small(looked_up(texts.encoder.feature_dim, lambda captions: texts(captions).tokens))
    run_dir: Path = arguments.runs / f"peer-{arguments.seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    state, progress = run_dir / "state.pt", run_dir / "progress.json"
    spent, steps = 0.0, 0
    if progress.exists():
        gan.load(state)
        spent, steps = (json.loads(progress.read_text())[key] for key in ("cpu_sec", "steps"))
    data = DataConfig(path=str(arguments.data), split="train")
    images = batches(
        data,
        open_for_training(data, resolution=RESOLUTION),
        resolution=RESOLUTION,
        batch=BATCH,
        seed=arguments.seed,
        start_nimg=2 * BATCH * steps,
    )

    def stream(times: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Each batch so many times: D's step takes pictures from one and captions from the next."""
        for batch in images:
            for _ in range(times):
                yield batch.img.float() / 255, batch.captions

    for_D, for_G = stream(2), stream(1)
    judge = open_evaluator(arguments.data, RESOLUTION, torch.device("cpu"))
    for point in PEER_POINTS:
        before = spent
        started = time.process_time()
        while spent < point:
            gan.train_discriminator_step(dl_iter=for_D, apply_gradient_penalty=steps % PENALTY_EVERY == 0)
            gan.train_generator_step(batch_size=BATCH, dl_iter=for_G)
            gan.G_ema.update()
            steps += 1
            spent = before + time.process_time() - started
        if spent > before:
            gan.save(state)
            progress.write_text(json.dumps({"cpu_sec": spent, "steps": steps}))
        kimg = steps * BATCH / 1000
        if (key := f"peer/{arguments.seed}/{kimg:g}") not in read(RESULTS):
            networks = {"averaged": gan.G_ema, "plain": gan.unwrapped_G}
            found = [measure_peer(network, *judge, run_dir / f"{name}.png") for name, network in networks.items()]
            keep(RESULTS, key, min(found, key=lambda f: f["frechet"]) | {"cpu_sec": round(spent)})


@torch.inference_mode()
def measure_peer(network: Any, data: Any, evaluator: Any, sheet: Path) -> dict[str, float]:
    """What `gigagan evaluate` measures, of pictures of the peer's generator; the first are kept as a sheet."""
    from PIL import Image

    from gigagan.cli.evaluate import SHEET_PICTURES
    from gigagan.evaluation.evaluate import evaluate, plan
    from gigagan.grid import captioned_sheet

    requests = plan(evaluator.real, "train", NUM_PROMPTS)
    pictures: list[Any] = []
    for start in range(0, len(requests), BATCH):
        part = requests[start : start + BATCH]
        noise = torch.stack([torch.randn(SMALL["text"], generator=torch.Generator().manual_seed(r.seed)) for r in part])
        drawn = network.eval()(noise=noise, texts=[r.text for r in part])
        pictures.extend((drawn.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    first = [Image.fromarray(picture) for picture in pictures[:SHEET_PICTURES]]
    captioned_sheet(first, [request.text for request in requests[:SHEET_PICTURES]]).save(sheet)
    return picked({f.name: f.value for f in evaluate(pictures, requests, evaluator, data).figures})


def train_ours(arguments: argparse.Namespace) -> None:
    """`gigagan train` and `gigagan evaluate` in turns, for as long as the peer has."""
    run_dir: Path = arguments.runs / f"ours-{arguments.seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = [f"data.path={arguments.data}", f"data.features={arguments.features}", f"vision.heads={arguments.heads}"]
    settings += [f"train.seed={arguments.seed}", "--dtype", arguments.dtype]
    reached, spent = 0.0, 0
    for point in (*OURS_KIMG, None):
        if arguments.kimg and (point is None or point > arguments.kimg):
            break
        kimg = point or int(10 * reached * CPU_SEC / spent) / 10
        length = [f"train.total_kimg={kimg:g}"]
        if point is None:  # the preset's fall, sooner
            length += [f"optim_G.lr=[[0, 0.001], [4, 0.005], [{reached:g}, 0.005], [{kimg:g}, 0.001]]"]
            length += ["--allow-change", "optim_G.lr"]
        gigagan(run_dir, "train", "emoji64-released", "--run-dir", str(run_dir), *length, *settings)
        reached, spent = last(run_dir), cpu_sec(run_dir)
        if (key := f"ours/{arguments.seed}/{kimg:g}") not in read(RESULTS):
            keep(RESULTS, key, measure(run_dir, arguments.data))


def last(run_dir: Path) -> float:
    """How far a run has come, in thousand images."""
    return float(json.loads((run_dir / "stats.jsonl").read_text().splitlines()[-1])["Progress/kimg"])


def curves(measured: dict[str, dict[str, float]]) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """Each run's points, (kimg, figures), in order."""
    found: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for key, figures in measured.items():
        run, kimg = key.rsplit("/", 1)
        found.setdefault(run, []).append((float(kimg), figures))
    return {run: sorted(points, key=lambda point: point[0]) for run, points in sorted(found.items())}


def table(arguments: argparse.Namespace) -> None:
    """Print the points as Markdown, and draw Fréchet distance over CPU time."""
    found = curves(read(RESULTS))
    print("| side/seed | kimg | CPU-s | Fréchet | kernel x1000 | style | concept R@5 | text R@5 |")
    print(f"| --- {'| ---: ' * 7}|")
    for run, points in found.items():
        for kimg, f in points:
            shares = [f"{100 * f[key]:.1f} %" for key in ("style", "concept", "text_to_image")]
            cells = [run, f"{kimg:.1f}", f"{f['cpu_sec']:.0f}", f"{f['frechet']:.0f}", f"{f['kernel']:.0f}", *shares]
            print(f"| {' | '.join(cells)} |")
    if arguments.plot:
        _plot(found, arguments.plot)


def _plot(found: dict[str, Sequence[tuple[float, dict[str, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(figsize=(7, 4.5))
    for run, points in found.items():
        label = f"{'gigagan-pytorch' if run.startswith('peer') else 'ours'}, seed {run.split('/')[1]}"
        hours = [f["cpu_sec"] / 3600 for _, f in points]
        axes.plot(hours, [f["frechet"] for _, f in points], marker="o", label=label)
    axes.set(xlabel="CPU-hours of one thread", ylabel="Fréchet distance (EfficientNet-Lite1)", ylim=(0, None))
    axes.legend()
    canvas.tight_layout()
    canvas.savefig(path, dpi=110)


def main() -> None:
    """`peer`, `ours` or `table`."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for side, command in (("peer", train_peer), ("ours", train_ours)):
        runner = commands.add_parser(side, help=f"train and measure {side}")
        for name in ("data", "features", "runs"):
            runner.add_argument(f"--{name}", type=Path, required=True)
        runner.add_argument("--seed", type=int, default=0, help="[0]")
        runner.set_defaults(command=command)
    runner.add_argument("--heads", type=Path, required=True)
    runner.add_argument("--dtype", default="float32", help="bfloat16 where the processor has it [float32]")
    runner.add_argument("--kimg", type=float, help="stop there [as long as the peer has]")
    shower = commands.add_parser("table", help="print what is measured")
    shower.add_argument("--plot", type=Path, help="draw the curves here, as PNG")
    shower.set_defaults(command=table)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
