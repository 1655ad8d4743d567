"""The ablation (paper, Table 1): its twelve rows scaled down alike, 32 px, a sixteenth of the widths, nine-style emoji.

    gigagan data emoji --out DATA --resolution 64 && gigagan data encode DATA --out FEATURES
    gigagan data heads DATA --out HEADS --resolution 64 && gigagan data weights lite0
    python benchmarks/ablation.py run --data DATA --features FEATURES --heads HEADS --runs RUNS
    python benchmarks/ablation.py table --plot FILE

Each run is `gigagan train` of its preset with what `scaled` changes, one thread each, and is measured by
`gigagan evaluate` at the points of its curve. Stopped and started again, it goes on: runs resume, and what is in the
JSON file isn't measured again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from gigagan import config, cost
from gigagan.config import RunConfig

RESULTS = Path(__file__).with_name("ablation.json")
RESOLUTION = 32
WIDTH_DIVISOR = 16
PAPER = {  # row: what it adds, FID-10k and CLIP score of the paper
    1: ("StyleGAN2 with text", 29.91, 0.222),
    2: ("row 1, larger", 34.07, 0.223),
    3: ("row 1, tuned", 28.11, 0.228),
    4: ("+ attention", 23.87, 0.235),
    5: ("row 4 + matching-aware, real only", 27.29, 0.250),
    6: ("row 4 + matching-aware, G and D", 21.66, 0.254),
    7: ("+ adaptive convolution", 19.97, 0.261),
    8: ("+ deeper", 19.18, 0.263),
    9: ("+ CLIP loss", 14.88, 0.280),
    10: ("+ multi-scale", 14.92, 0.300),
    11: ("+ vision-aided", 13.67, 0.287),
    12: ("+ scaled up", 9.18, 0.307),
}
PARENTS = {2: 1, 3: 1, 4: 3, 5: 4, 6: 4, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 12: 11}
SEEDS = {row: (0, 1, 2) if row in (4, 5, 6, 9, 10, 11) else (0,) for row in PAPER}
POINTS = (0.25, 0.5, 1.0)
"""Where a run is measured, as shares of its length."""
NUM_PROMPTS = 900
FIGURES = {  # as `gigagan evaluate` names them
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "style": "style read correctly",
    "concept": "concept R@5 of",
    "text_to_image": "text to image R@5",
}


def scaled(row: int, *, seed: int, total_kimg: float) -> RunConfig:
    """The configuration of a row: the preset's, with the same changes for each."""
    tree = config.load(f"ablation-{row:02d}").model_dump(mode="json")
    G, D, loss = tree["generator"], tree["discriminator"], tree["loss"]
    levels = RESOLUTION.bit_length() - 2
    for network in (G, D):
        for key in ("channel_base", "channel_max", "w_dim", "text_dim", "head_channel_max"):
            if key in network:
                network[key] //= WIDTH_DIVISOR
        network["text_heads"] = 2
        attention = network["attention"]
        kept = [(r, d) for r, d in zip(attention["resolutions"], attention["depths"], strict=True) if r < RESOLUTION]
        attention |= {"resolutions": [r for r, _ in kept], "depths": [d for _, d in kept], "head_dim": 16}
    G |= {"resolution": RESOLUTION, "blocks": G["blocks"][:levels], "num_filters": G["num_filters"][:levels]}
    D["blocks"] = D["blocks"][:levels]
    if D["multi_scale"]:
        loss["level_weights"] = [0.4, 0.2, 0.2, 0.2]
    for key in ("clip_weight", "r1_gamma"):
        if isinstance(loss[key], list):  # the schedule's last point is the end of the run
            loss[key] = [[0, loss[key][0][1]], [total_kimg, loss[key][-1][1]]]
    tree["text"] = {"encoder": "minilm", "max_tokens": 32}
    tree["vision"] |= {"network": "lite0", "resolution": 64, "text_dim": 48, "text_heads": 2, "channels": 32}
    tree["augment"] = {"prob": 0.5}
    # Within so few steps no row leaves chance as the paper trains (docs/log.md): each gets the pictures of its captions
    # as well, and rates that suit small batches.
    G["mapping_lr_multiplier"] = 1.0
    loss["paired_l1_weight"] = 20.0
    tree["optim_G"] |= {"lr": 0.002, "beta1": 0.5}
    tree["optim_D"] |= {"lr": 0.002}
    tree["train"] |= {
        "seed": seed, "total_kimg": total_kimg, "batch": 16, "batch_gpu": 16, "ema_kimg": 2.0, "dtype": "float32",
        "kimg_per_tick": 1.0, "snapshot_ticks": 1000, "checkpoint_ticks": 4, "keep_checkpoints": 1,
    }  # fmt: skip
    return config.from_dict(tree)


def run(arguments: argparse.Namespace) -> None:
    """Train and measure all that isn't measured yet, point by point, the largest row first, then the first seeds."""
    jobs = [(row, seed) for seed in range(3) for row in PAPER if seed in SEEDS[row]]
    jobs.sort(key=lambda job: job[0] != 12)  # one worker would be left alone with it
    if arguments.rows:
        jobs = [(row, seed) for row, seed in jobs if row in arguments.rows]
    lock = Lock()

    def one(row: int, seed: int, kimg: float) -> None:
        key = f"{row}/{seed}/{kimg:g}"
        if key not in read(RESULTS):
            figures = train_and_measure(row, seed, kimg, arguments)
            with lock:
                keep(RESULTS, key, figures)

    for point in POINTS:  # all rows stand at the same point whenever it is broken off
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(one, *zip(*jobs, strict=True), [point * arguments.kimg] * len(jobs)))


def read(results: Path) -> dict[str, dict[str, float]]:
    """What is measured: "run/seed/kimg" to figures; here a run is a row."""
    return json.loads(results.read_text()) if results.exists() else {}


def keep(results: Path, key: str, figures: dict[str, float]) -> None:
    """Add a point."""
    results.write_text(json.dumps(read(results) | {key: figures}, indent=1, sort_keys=True) + "\n")
    print(key, figures, flush=True)


def train_and_measure(row: int, seed: int, kimg: float, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures of a run at a point; it is trained on to there from where it stands."""
    run_dir = arguments.runs / f"{row:02d}-{seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    preset = run_dir / "preset.yaml"
    preset.write_text(config.to_yaml(scaled(row, seed=seed, total_kimg=arguments.kimg)))
    data = [f"data.path={arguments.data}", f"data.features={arguments.features}", f"vision.heads={arguments.heads}"]
    gigagan(run_dir, "train", str(preset), "--run-dir", str(run_dir), *data, f"train.total_kimg={kimg:g}")
    return measure(run_dir, arguments.data)


def measure(run_dir: Path, data: Path) -> dict[str, float]:
    """Figures of a run's model as it stands, with the CPU-seconds that it took; its first pictures are in sheet.png."""
    model, figures, sheet = run_dir / "model", run_dir / "figures.json", run_dir / "sheet.png"
    asked = ["--data", str(data), "--num", str(NUM_PROMPTS), "--json", str(figures), "--sheet", str(sheet)]
    gigagan(run_dir, "evaluate", str(model), *asked)
    values = {name: f["value"] for name, f in json.loads(figures.read_text())["figures"].items()}
    return picked(values) | {"cpu_sec": cpu_sec(run_dir)}


def gigagan(run_dir: Path, *arguments: str) -> None:
    """A command on one thread, its output in the run's log. Raises RuntimeError with the log's end when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (run_dir / "log.txt").open("a+", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "gigagan", *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    if done.returncode:
        raise RuntimeError(f"{run_dir}: gigagan {arguments[0]} failed; see log.txt there")


def picked(values: Mapping[str, float]) -> dict[str, float]:
    """The figures that are kept, of all that were measured."""
    return {
        short: next(value for name, value in values.items() if name.startswith(start))
        for short, start in FIGURES.items()
    }


def cpu_sec(run_dir: Path) -> int:
    """Of the training up to now."""
    total, before = 0.0, 0.0
    for line in (run_dir / "stats.jsonl").read_text().splitlines():
        tick = json.loads(line)
        total += tick["Timing/cpu_sec_per_kimg"] * (tick["Progress/kimg"] - before)
        before = tick["Progress/kimg"]
    return round(total)


def table(arguments: argparse.Namespace) -> None:
    """Print the rows and what each changes as Markdown, beside the paper's; draw the curves."""
    measured = {key: _percent(figures) for key, figures in read(RESULTS).items()}
    kimg = arguments.at or max(float(key.split("/")[2]) for key in measured)
    runs = {}
    for row in PAPER:
        keys = [f"{row}/{seed}/{kimg:g}" for seed in SEEDS[row]]
        if seeds := [measured[key] for key in keys if key in measured]:
            runs[row] = seeds
    _print_rows(runs, kimg)
    print()
    _print_changes(runs)
    if arguments.plot:
        _plot(measured, arguments.plot)


def _percent(figures: Mapping[str, float]) -> dict[str, float]:
    """Shares in percent, the rest as it is."""
    return {
        key: 100 * value if key in ("style", "concept", "text_to_image") else value for key, value in figures.items()
    }


def _print_rows(runs: Mapping[int, list[dict[str, float]]], kimg: float) -> None:
    """Mean and deviation over seeds."""
    print("| row | G, M | GFLOP a step's image | CPU-s | Fréchet | kernel x1000 |", end="")
    print(" style, % | concept R@5, % | text R@5, % | paper: FID, CLIP |\n| --- " + "| ---: " * 9 + "|")
    for row, seeds in runs.items():
        name, fid, clip = PAPER[row]
        counted = cost.measure(scaled(row, seed=0, total_kimg=kimg))
        cells = [f"{row} {name}", f"{counted.generator.total.parameters / 1e6:.2f}", f"{counted.step.total / 1e9:.2f}"]
        cells += [f"{statistics.mean(r['cpu_sec'] for r in seeds):.0f}"]
        cells += [_spread([r[key] for r in seeds], 1) for key in FIGURES]
        print(f"| {' | '.join(cells)} | {fid}, {clip:.3f} |")


def _print_changes(runs: Mapping[int, list[dict[str, float]]]) -> None:
    """Difference of a row's mean from that of the row it starts from, bold where it is over two seed deviations.

    The deviation is pooled over all rows of more than one seed; without any, no difference is bold.
    """
    means, deviations = {}, {}
    for key in FIGURES:
        means[key] = {row: statistics.mean(r[key] for r in seeds) for row, seeds in runs.items()}
        squares = [statistics.variance(r[key] for r in seeds) for seeds in runs.values() if len(seeds) > 1]
        deviations[key] = statistics.mean(squares) ** 0.5 if squares else math.inf
    print("| row | to row | Fréchet | kernel x1000 | style | concept R@5 | text R@5 | paper: FID, CLIP |")
    print("| --- " + "| ---: " * 7 + "|")
    for row, parent in PARENTS.items():
        if row not in runs or parent not in runs:
            continue
        cells = []
        for key, deviation in deviations.items():
            change = means[key][row] - means[key][parent]
            cells.append(f"**{change:+.1f}**" if abs(change) > 2 * deviation else f"{change:+.1f}")
        fid, clip = (new - old for new, old in zip(PAPER[row][1:], PAPER[parent][1:], strict=True))
        print(f"| {row} {PAPER[row][0]} | {parent} | {' | '.join(cells)} | {fid:+.2f}, {clip:+.3f} |")
    print(f"| one seed deviation | | {' | '.join(f'{d:.1f}' for d in deviations.values())} | |")


def _spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def _plot(measured: dict[str, dict[str, float]], path: Path) -> None:
    """Fréchet distance over images, each row a line, its seeds a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5))
    for n, (row, (name, *_)) in enumerate(PAPER.items()):
        points: dict[float, list[float]] = {}
        for key, figures in measured.items():
            its_row, _, kimg = key.split("/")
            if int(its_row) == row:
                points.setdefault(float(kimg), []).append(figures["frechet"])
        xs = sorted(points)
        color = pyplot.colormaps["tab20"](n / 12)
        axes.plot(xs, [statistics.mean(points[x]) for x in xs], marker="o", color=color, label=f"{row} {name}")
        axes.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs], color=color, alpha=0.2)
    axes.set(xlabel="thousand images", ylabel="Fréchet distance (EfficientNet-Lite1)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """`run` or `table`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train and measure what isn't yet")
    for name in ("data", "features", "heads", "runs"):
        runner.add_argument(f"--{name}", type=Path, required=True)
    runner.add_argument("--kimg", type=float, default=50.0, help="length of a run [50]")
    runner.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each [2]")
    runner.add_argument("--rows", type=int, nargs="*", help="only these")
    runner.set_defaults(command=run)
    shower = commands.add_parser("table", help="print what is measured")
    shower.add_argument("--at", type=float, help="images a run, in thousands [the most measured]")
    shower.add_argument("--plot", type=Path, help="draw the curves here, as PNG")
    shower.set_defaults(command=table)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
