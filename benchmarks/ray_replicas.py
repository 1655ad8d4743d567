"""What a second replica adds: pictures a second through HTTP of one and of two replicas of one thread each, in turns.

    python benchmarks/ray_replicas.py --out out/ray.json [--clients 16] [--seconds 20] [--rounds 2] [--size 512x512]

Needs the extras `scale` and `dev`, and two cores that nothing else uses. Clients ask for one picture at a time and ask
again at once. The front, the proxy and the clients share the cores with the replicas, which is part of the figure.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from clients import served

WARM_SEC = 3


def measured(replicas: int, clients: int, seconds: float, size: str) -> float:
    """Pictures a second of a service that is started for this."""
    command = [sys.executable, "-m", "gigagan", "serve", "--ray", "--replicas", str(replicas), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, "the service didn't start"
        try:
            served(url, clients, WARM_SEC, size=size)
            return served(url, clients, seconds, size=size).per_sec
        finally:
            server.terminate()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for replicas, found in rates.items():
            found.append(measured(replicas, arguments.clients, arguments.seconds, arguments.size))
            print(f"{replicas} replicas: {found[-1]:.2f} pictures/s", file=sys.stderr, flush=True)
    one, two = (statistics.median(found) for found in rates.values())
    asked = {"size": arguments.size, "clients": arguments.clients, "cores": os.cpu_count()}
    text = json.dumps({**asked, "one_per_sec": rates[1], "two_per_sec": rates[2], "ratio": two / one}, indent=2)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
