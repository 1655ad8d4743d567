"""One side of a row in a process of its own: its memory and its allocator are then nobody else's.

    python benchmarks/worker.py SPEC        SPEC is JSON, see `harness.Worker`

The worker builds its case, says so in a line of JSON, and then takes one sample for each line it reads. It sleeps while
another worker has its turn.
"""

import json
import os
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from cases import Case, Part, counted_flops

WARM_SEC = 0.5
"""A part that is shorter runs once before it is timed: the other workers have had the caches."""
SAMPLE_SEC = 0.25
"""And then until this is over, so that the clock's grain and the first miss don't count."""
MAX_RUNS = 50


def memory_mib(field: str) -> float:
    """VmRSS (resident now) or VmHWM (its highest) of this process; the kernel begins both anew at its start."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: the benchmarks need Linux")


def sample(case: Case) -> dict[str, Any]:
    """Each part timed once: wall and CPU-seconds of one run of it, and of the pass they make."""
    parts = {name: timed(part) for name, part in case.parts.items()}
    shares = {name: part.share for name, part in case.parts.items()}
    total = {key: sum(shares[name] * parts[name][key] for name in parts) for key in ("wall_sec", "cpu_sec")}
    return {"parts": parts, **total}


def timed(part: Part) -> dict[str, float]:
    """Wall and CPU-seconds (of all threads) of one run."""
    once = _measured(part, 1)
    if once["wall_sec"] >= WARM_SEC:
        return once
    return _measured(part, min(max(round(SAMPLE_SEC / once["wall_sec"]), 1), MAX_RUNS))


def _measured(part: Part, runs: int) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(runs):
        part.run()
    return {"wall_sec": (time.perf_counter() - wall) / runs, "cpu_sec": (time.process_time() - cpu) / runs}


def main() -> None:
    """Build, report, and sample until standard input ends."""
    spec = json.loads(sys.argv[1])
    # Peers print; the pipe is for JSON alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(spec["threads"])
    torch.set_flush_denormal(True)  # random deep networks meet denormals, which are slow and mean nothing
    torch.manual_seed(0)
    if spec["keep_memory"]:
        from gigagan.allocator import keep_memory

        keep_memory()
    module, _, function = spec["function"].partition(":")
    build = getattr(import_module(module), function)
    for name in spec["imports"]:
        import_module(name)
    imported_mib = memory_mib("VmRSS")

    case: Case = build(**spec["arguments"])
    flops = counted_flops(case) if case.flops is None else case.flops
    for part in case.parts.values():
        part.run()
    facts = {"images": case.images, "parameters": case.parameters or {}, "flops": flops, "imported_mib": imported_mib}
    print(json.dumps(facts), file=replies, flush=True)
    for _ in sys.stdin:
        result = sample(case) | {"peak_mib": memory_mib("VmHWM") - imported_mib}
        print(json.dumps(result), file=replies, flush=True)


if __name__ == "__main__":
    main()
