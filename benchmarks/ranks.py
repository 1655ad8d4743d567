"""What a second rank adds: images a second of training on one rank and on two (gloo), a thread and a batch each.

    python benchmarks/ranks.py --out out/ranks.json [--batch 16] [--seconds 60] [--rounds 3] [KEY=VALUE ...]

Needs the extra `train` and two cores that nothing else uses. The runs take turns; each is the command that people type,
and its figure the median of the images a second that it logs, the first log left out.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def images_per_sec(ranks: int, arguments: argparse.Namespace) -> float:
    """Of a run of so many ranks that is ended after `--seconds`, counted from its first log."""
    with tempfile.TemporaryDirectory() as folder:
        batch = [f"train.batch={arguments.batch * ranks}", f"train.batch_gpu={arguments.batch}"]
        command = [sys.executable, "-m", "gigagan", "train", arguments.preset, "--run-dir", folder, *batch]
        command += ["train.max_sec_per_tick=5", *(["--nproc", str(ranks)] if ranks > 1 else []), *arguments.overrides]
        with subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL) as run:
            rows: list[float] = []
            first = None
            while first is None or time.monotonic() < first + arguments.seconds:
                if run.poll() is not None:
                    raise SystemExit(f"the run of {ranks} ranks ended with {run.returncode}")
                time.sleep(1)
                stats = Path(folder) / "stats.jsonl"
                lines = stats.read_text().splitlines() if stats.is_file() else []
                rows = [json.loads(line)["Timing/images_per_sec"] for line in lines]
                first = first or (time.monotonic() if rows else None)
            run.send_signal(signal.SIGTERM)
            run.wait(60)
    return statistics.median(rows[1:])


def main() -> None:
    """Both in turns, printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--preset", default="emoji64", help="what is trained [emoji64]")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step of each rank [16]")
    parser.add_argument("--seconds", type=float, default=60, help="of each run, from its first log [60]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each [3]")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of gigagan train, such as data.path=DATA")
    arguments = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for ranks, rates in found.items():
            rates.append(images_per_sec(ranks, arguments))
            print(f"{ranks} ranks: {rates[-1]:.2f} images/s", flush=True)
    medians = {ranks: statistics.median(rates) for ranks, rates in found.items()}
    print(f"two ranks / one: {medians[2] / medians[1]:.2f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"preset": arguments.preset, "batch": arguments.batch, "overrides": arguments.overrides}
    arguments.out.write_text(json.dumps(about | {"images_per_sec": found, "ratio": medians[2] / medians[1]}, indent=2))


if __name__ == "__main__":
    main()
