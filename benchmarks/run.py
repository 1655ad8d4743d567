"""Ours and the peers in turns on the same threads and the same torch, as a table and as JSON.

    make bench-env && make bench
    .bench-venv/bin/python benchmarks/run.py picture sixteen --rounds 9

Each side is a process of its own that sleeps while another has its turn. Rows that are named replace theirs in the
JSON file and leave the others as they were; each row says when, where and at which commit it was measured.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from harness import Interleaved, conditions, interleave
from rows import ROWS, Growth, Row, Verdict

HEAD = (
    "Random weights everywhere but in the shipped model: times, memory and FLOPs are real, pictures aren't. A pass is\n"
    "what a side does at once; MiB is the peak of its memory above the imports, each side in its own process. GFLOP\n"
    "of ours are the equations', of the peers the operations that ran (mixing of kernels not counted)."
)
COLUMNS = ("side", "M params", "images", "GFLOP", "median s", "min s", "CPU s", "images/s", "GFLOP/s", "of GEMM", "MiB")


def main() -> int:
    """Run the rows; 0 if every bar held, 1 if one didn't or a side failed."""
    arguments = _arguments()
    chosen = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    if arguments.list:
        print("\n".join(f"{row.name:15}{row.title}" for row in ROWS))
        return 0
    print(HEAD)
    held = True
    for row in chosen:
        start = time.monotonic()
        measured = interleave(row.sides, threads=arguments.threads, rounds=arguments.rounds, wait_sec=arguments.wait)
        verdicts = [verdict for check in row.checks for verdict in check.verdicts(measured)]
        held = held and not measured.failed and all(verdict.passed is not False for verdict in verdicts)
        print(f"\n{_table(row, measured, verdicts)}\n  took {time.monotonic() - start:.0f} s", flush=True)
        _write(arguments.out, row, measured, verdicts, conditions(arguments.threads, arguments.rounds))
        if curves := [check for check in row.checks if isinstance(check, Growth) and check.of in measured.results]:
            print(f"  {_plot(curves, measured, arguments.out.with_name(f'{arguments.out.stem}-growth.png'))}")
    print(f"\n{arguments.out}")
    return 0 if held else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; all without (--list names them)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side [2]")
    parser.add_argument("--rounds", type=int, default=7, help="passes of every side [7]")
    parser.add_argument("--wait", type=float, default=300, help="seconds to wait for an idle machine, each row [300]")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"), help="JSON file [out/bench.json]")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    arguments = parser.parse_args()
    names = [row.name for row in ROWS]
    if unknown := [name for name in arguments.rows if name not in names]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(names)}")
    if min(arguments.threads, arguments.rounds) < 1:
        parser.error("--threads and --rounds are at least 1")
    return arguments


def _table(row: Row, measured: Interleaved, verdicts: list[Verdict]) -> str:
    lines = [list(COLUMNS)]
    for result in measured.results.values():
        cpu = result.to_dict()["cpu_sec"]["median"]
        counted = result.gflop > 0
        lines.append(
            [
                result.label,
                " + ".join(f"{number / 1e6:.1f}" for number in result.parameters.values()) or "-",
                str(result.images),
                f"{result.gflop:.4g}" if counted else "-",
                f"{result.median_sec:.4g}",
                f"{result.min_sec:.4g}",
                f"{cpu:.4g}",
                f"{1 / result.sec_per_image:.4g}",
                f"{result.gflops:.0f}" if counted else "-",
                f"{measured.share_of_peak(result):.0%}" if counted else "-",
                f"{result.peak_mib:.0f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = [f"{row.name}: {row.title}"]
    for first, *rest in lines:
        cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        text.append("  " + "  ".join(cells))
    peak = ", ".join(f"{arithmetic} {value:.0f} GFLOP/s" for arithmetic, value in measured.gemm_gflops.items())
    text.append(f"  GEMM peak {peak}; machine {measured.idle:.0%} idle before")
    for verdict in verdicts:
        mark = {True: "holds", False: "MISSED", None: ""}[verdict.passed]
        text.append(f"  {verdict.value:8.3f} {verdict.bar:8} {mark:7} {verdict.what}")
    text += [f"  FAILED {message}" for message in measured.failed.values()]
    return "\n".join(text)


def _write(out: Path, row: Row, measured: Interleaved, verdicts: list[Verdict], where: dict[str, Any]) -> None:
    """Put the row into the file; whole or not at all."""
    tree: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    sides = {}
    for label, result in measured.results.items():
        sides[label] = result.to_dict() | {"share_of_gemm_peak": measured.share_of_peak(result)}
    tree.setdefault("note", " ".join(HEAD.split()))
    tree.setdefault("rows", {})[row.name] = {
        "title": row.title,
        "conditions": where | {"idle_before": measured.idle, "gemm_gflops": measured.gemm_gflops},
        "sides": sides,
        "checks": [vars(verdict) for verdict in verdicts],
        "failed": measured.failed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(tree, indent=1) + "\n")
    temporary.replace(out)


def _plot(curves: list[Growth], measured: Interleaved, path: Path) -> Path:
    """Time a picture against output pixels and against the batch, with the line of equal cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4))
    for panel, over in zip(panels, ("pixels", "batch"), strict=True):
        for curve in (curve for curve in curves if curve.over == over):
            points = curve.points(measured.results[curve.of])
            panel.plot([x for x, _, _ in points], [1e3 * each for _, _, each in points], marker="o", label=curve.of)
        panel.set(
            xscale="log", yscale="log", ylabel="ms a picture", xlabel="output pixels" if over == "pixels" else over
        )
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    sys.exit(main())
