"""What the server adds to the model: overhead of one client, throughput of many beside the bare pipeline.

    python benchmarks/serving.py --out out/serving.json [--model emoji] [--size 512] [--clients 32] [--seconds 20]

Needs the extras `serve` and `dev`.

overhead    a request's time at the client, less what the server's own metrics say that the model and the encoder took.
throughput  pictures a second of clients that ask for one at a time and ask again at once; before and after it, the
            pipeline that draws and encodes full batches alone.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from clients import PROMPT, served

from gigagan.metadata import png_bytes
from gigagan.pipeline import DEFAULT_PSI, Pipeline

BARE_SEC = 30
"""The pipeline alone is measured at most so long before the clients, and after."""


def spent(client: httpx.Client, root: str) -> float:
    """Seconds of the model and the encoder so far."""
    text = client.get(f"{root}/metrics").text
    return sum(float(s) for s in re.findall(r"^gigagan_(?:draw|encode)_seconds_sum (\S+)", text, re.MULTILINE))


def overheads(root: str, count: int, size: str) -> list[float]:
    """Of `count` requests one after the other, milliseconds."""
    found = []
    with httpx.Client(timeout=60) as client:
        for seed in range(count):
            before = spent(client, root)
            started = time.perf_counter()
            body = {"prompt": PROMPT, "seed": seed, "size": size}
            client.post(f"{root}/v1/images/generations", json=body).raise_for_status()
            wall = time.perf_counter() - started
            found.append(1000 * (wall - (spent(client, root) - before)))
    return found


def alone(pipe: Pipeline, seconds: float) -> float:
    """Pictures a second of the pipeline and the encoder in turns."""
    count = 0
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        seeds = range(count, count + pipe.micro_batch)
        for image, seed in zip(pipe(PROMPT, seeds=seeds).images, seeds, strict=True):
            png_bytes(image, pipe.info(PROMPT, seed, DEFAULT_PSI, image.width), level=1)
        count += pipe.micro_batch
    return count / (time.monotonic() - started)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, one that the model has [512]")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    size = f"{arguments.size}x{arguments.size}"
    base = Pipeline.from_pretrained(arguments.model, upsampled=False)
    pipe = base if base.resolution == arguments.size else Pipeline.from_pretrained(arguments.model)
    alone(pipe, 2)
    command = [sys.executable, "-m", "gigagan", "serve", "--port", "0", "--model", arguments.model, "--queue", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        root = server.stdout.readline().strip().removesuffix("/v1")
        took = sorted(overheads(root, arguments.requests, size))
        bare = min(arguments.seconds / 2, BARE_SEC)
        rates = [alone(pipe, bare)]
        many = served(f"{root}/v1", arguments.clients, arguments.seconds, size=size)
        rates.append(alone(pipe, bare))
        server.terminate()
    measured = {
        "overhead_ms": {"p50": statistics.median(took), "p99": took[len(took) * 99 // 100]},
        "served": many._asdict(),
        "alone_per_sec": rates,
        "share": many.per_sec / statistics.mean(rates),
        # Each client's picture, were they drawn and encoded in full batches one after the other.
        "all_in_turn_sec": math.ceil(arguments.clients / pipe.micro_batch) * pipe.micro_batch / statistics.mean(rates),
    }
    text = json.dumps({"model": pipe.model_hash, "size": size, "clients": arguments.clients, **measured}, indent=2)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
