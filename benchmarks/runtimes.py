"""PyTorch beside ONNX Runtime and OpenVINO, from a new prompt to a picture: all in turns, in one process.

    python benchmarks/runtimes.py --out out/runtimes.json [--exports out/exports] [--threads 2] [--rounds 15]

Needs the extra `export`. Exports lie in --exports, and are made where they aren't there yet.

A pass draws one prompt that wasn't seen before, with one seed: text encoder, mapping and its conditional mean,
synthesis; for the large picture the upsampler too. Encoding a file isn't in it. Wall seconds are medians over the
rounds; CPU-seconds count every thread, so a runtime that waits by spinning shows. Ratios are medians of what the turns
of a round give.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import conditions, wait_until_idle

from gigagan.allocator import keep_memory
from gigagan.export import export
from gigagan.pipeline import Pipeline

SIDES = (
    ("PyTorch float32", "", "float32"),
    ("PyTorch bfloat16", "", "bfloat16"),
    ("ONNX Runtime float32", "onnx", "float32"),
    ("OpenVINO float32", "openvino", "float32"),
    ("OpenVINO bfloat16", "openvino", "bfloat16"),
)
THINGS = ("apple", "rocket", "leaf", "house", "cat", "heart", "star", "flower")


def opened(model: str, exports: Path, kind: str, dtype: str, upsampled: bool) -> Pipeline:
    """A side's pipeline."""
    if not kind:
        return Pipeline.from_pretrained(model, dtype=dtype, upsampled=upsampled)
    if not (exports / kind).exists():
        export(model, exports / kind, format=kind, progress=lambda part: print(f"{kind}: {part}", flush=True))
    return Pipeline.from_pretrained(exports / kind, dtype=dtype, upsampled=upsampled)


def one_pass(pipe: Pipeline, number: int) -> tuple[float, float]:
    """Wall and CPU-seconds of a picture of a prompt that is new to the pipeline."""
    prompt = f"a red {THINGS[number % len(THINGS)]} number {number}"
    wall, cpu = time.perf_counter(), time.process_time()
    pipe(prompt, seeds=number, output_type="np")
    return time.perf_counter() - wall, time.process_time() - cpu


def row(pipes: dict[str, Pipeline], rounds: int) -> dict[str, Any]:
    """Every side in turns, the first of a round another one each time."""
    names = list(pipes)
    for pipe in pipes.values():
        for number in range(3):
            one_pass(pipe, rounds + number)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            samples[name].append(one_pass(pipes[name], n))
    first = samples[names[0]]
    return {
        name: {
            "wall_ms": 1000 * statistics.median(wall for wall, _ in taken),
            "cpu_ms": 1000 * statistics.median(cpu for _, cpu in taken),
            "times_first": statistics.median(a[0] / b[0] for a, b in zip(first, taken, strict=True)),
            "samples": taken,
        }
        for name, taken in samples.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--exports", type=Path, default=Path("out/exports"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--wait-sec", type=float, default=0, help="For a machine that is idle, at most.")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_memory()  # as the command does
    rows = {}
    idle = wait_until_idle(arguments.wait_sec)
    for upsampled in (False, True):
        pipes = {
            name: opened(arguments.model, arguments.exports, kind, dtype, upsampled) for name, kind, dtype in SIDES
        }
        side = next(iter(pipes.values())).resolution
        rows[f"{side} px"] = found = row(pipes, arguments.rounds)
        print(f"\n{side} px{'':30}{'wall, ms':>10}{'CPU, ms':>10}{'times as fast':>16}")
        for name, told in found.items():
            print(f"{name:36}{told['wall_ms']:>10.1f}{told['cpu_ms']:>10.1f}{told['times_first']:>16.2f}")
    about = conditions(arguments.threads, arguments.rounds) | {"idle_share": idle}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"conditions": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
