"""What edits do on a model, read by the evaluator's classifiers: mixing at every layer, arithmetic, projection.

    python benchmarks/editing.py emoji --data DATA --out out/editing.json

Needs the extra `dev` and matplotlib; the evaluator learns from DATA once (minutes) and is kept in ~/.cache/gigagan.
Nothing is chosen after looking: concepts and seeds are fixed by the options.

mixing      "a 3D render of X" (layers before the boundary) with "a black and white icon of X" (the others). The bar: it
            changes the style in at least 70 %, so that the picture is no longer read as a 3D render, and of prompts
            whose plain 3D picture is read in the top 5 at least 70 % stay there. Beside it the strict reading: style
            changed only where the picture is read as the black and white icon.
arithmetic  w("a flat icon of X") - w("a 3D render of X"), conditional means, times a strength, added to "a 3D render of
            Y"; X is another concept for each Y.
projection  pictures drawn at psi 1 are projected from their prompts alone; the distance is the evaluator's, through
            Lite1, which the projection doesn't look through. Beside them real pictures, from their captions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gigagan.cli.evaluate import MIN_RES, open_evaluator
from gigagan.data.weights import fetch
from gigagan.editing import difference, mix, move, project
from gigagan.evaluation.evaluator import Evaluator
from gigagan.evaluation.features import Features, as_batch, perceptual_distance
from gigagan.evaluation.real import Captioned
from gigagan.models.frozen import load_efficientnet_lite
from gigagan.models.latents import Latents
from gigagan.pipeline import DEFAULT_PSI, Pipeline

COARSE, FINE, ADDED = (
    ("3d", "a 3D render of {}"),
    ("outline", "a black and white icon of {}"),
    ("flat", "a flat icon of {}"),
)
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
TOP = 5
BARS = {"mixing, style changed": 0.7, "mixing, concept kept": 0.7, "arithmetic, style": 0.6, "projection, found": 0.9}
BATCH = 20
REAL = 20
"""Real pictures to project."""


def main() -> int:
    """Measure, print, write; 0 if every bar that was measured held."""
    arguments = _arguments()
    pipe = Pipeline.from_pretrained(arguments.model, upsampled=False)
    data, evaluator = open_evaluator(arguments.data, max(MIN_RES, pipe.resolution), pipe.device)
    names, things = _concepts(evaluator, arguments.num)
    reader = Reader(pipe, evaluator, names)
    measured: dict[str, Any] = {
        "model": pipe.model_hash,
        "evaluator": evaluator.hash,
        "concepts": len(names),
        "psi": arguments.psi,
        "plain": plain(pipe, reader, things, arguments.psi),
        "mixing": mixing(pipe, reader, things, arguments.psi),
        "arithmetic": arithmetic(pipe, reader, things, arguments.psi),
    }
    if arguments.project:
        measured["projection"] = projection(pipe, evaluator, *generated(pipe, things[: arguments.project]))
        measured["projection of real pictures"] = projection(
            pipe, evaluator, *held_out(evaluator, data, pipe.resolution)
        )
    verdicts = judged(measured)
    said = measured | {"verdicts": verdicts, "strict reading of mixing": nearest(measured["mixing"], "style")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(said, indent=2) + "\n")
    plot(measured, arguments.out.with_suffix(".png"))
    print(json.dumps(said, indent=2))
    for name, verdict in verdicts.items():
        told = "held" if verdict["held"] else "not held"
        print(f"{name}: {verdict['value']:.0%}, bar {verdict['bar']:.0%}: {told}", file=sys.stderr)
    return 0 if all(verdict["held"] for verdict in verdicts.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory, or emoji")
    parser.add_argument("--data", type=Path, required=True, help="the emoji set that `gigagan data emoji` built")
    parser.add_argument("--num", type=int, default=100, help="concepts [100]")
    parser.add_argument("--psi", type=float, default=DEFAULT_PSI, help=f"truncation [{DEFAULT_PSI}]")
    parser.add_argument("--project", type=int, default=0, help="pictures to project; seconds each [0]")
    parser.add_argument("--out", type=Path, default=Path("out/editing.json"), help="JSON, and a plot beside it")
    return parser.parse_args()


def _concepts(evaluator: Evaluator, num: int) -> tuple[list[str], list[str]]:
    """Concepts that training has seen in 3D, drawn by a fixed seed, and the words for them ("a red apple")."""
    words = {p.concept: p.plain_caption for p in evaluator.real.pictures if p.style == COARSE[0] and p.split == "train"}
    concepts = sorted(words)
    order = torch.randperm(len(concepts), generator=torch.Generator().manual_seed(0))[:num].tolist()
    return [concepts[n] for n in order], [words[concepts[n]] for n in order]


class Reader:
    """Draws points, picture n of concept n, and reads their styles and concepts."""

    def __init__(self, pipe: Pipeline, evaluator: Evaluator, concepts: Sequence[str]) -> None:
        self.pipe = pipe
        self.evaluator = evaluator
        self.wanted = torch.tensor([evaluator.real.concepts.index(concept) for concept in concepts])

    def __call__(self, points: Latents) -> tuple[list[str], Tensor]:
        """The style read off each picture, and whether its concept is among the TOP best."""
        img = self.pipe.draw(points)[0]
        features = Features.join([self.evaluator.network(part) for part in img.split(BATCH)])
        readers, styles = self.evaluator.readers, self.evaluator.real.styles
        read = [styles[n] for n in readers.style_logits(features.texture).argmax(dim=1).tolist()]
        scores = readers.concept_scores(readers.look(features.cells))
        return read, (scores.topk(TOP, dim=1).indices == self.wanted[:, None]).any(dim=1)


def plain(pipe: Pipeline, read: Reader, things: Sequence[str], psi: float) -> dict[str, dict[str, float]]:
    """What the readers make of pictures that nobody edited: no edit can be expected to do better."""
    figures = {}
    for style, template in (COARSE, FINE, ADDED):
        styles, seen = read(_points(pipe, template, things, psi))
        figures[style] = {"style": _share([one == style for one in styles]), "concept seen": _share(seen.tolist())}
    return figures


def mixing(pipe: Pipeline, read: Reader, things: Sequence[str], psi: float) -> list[dict[str, float]]:
    """Of each boundary: style changed, and concept kept where the plain 3D picture shows it."""
    coarse, fine = (_points(pipe, template, things, psi) for _, template in (COARSE, FINE))
    _, plain_seen = read(coarse)
    rows = []
    for layer in range(coarse.num_layers + 1):
        styles, seen = read(mix(coarse, fine, layer))
        rows.append(
            {
                "layer": layer,
                "style": _share([style == FINE[0] for style in styles]),
                "style changed": _share([style != COARSE[0] for style in styles]),
                "concept kept": _share(seen[plain_seen].tolist()),
                "concept seen": _share(seen.tolist()),
            }
        )
    return rows


def arithmetic(pipe: Pipeline, read: Reader, things: Sequence[str], psi: float) -> list[dict[str, float]]:
    """Of each strength: pictures that read as flat, by the difference of one other concept and by the mean of all."""
    start = _points(pipe, COARSE[1], things, psi)
    others = [*things[1:], things[0]]
    plus, minus = (_points(pipe, template, others, 0.0) for template in (ADDED[1], COARSE[1]))
    mean = difference(plus, minus)
    _, plain_seen = read(start)
    rows = []
    for strength in STRENGTHS:
        own = Latents(start.ws + strength * (plus.ws - minus.ws), start.t_local, start.mask)
        styles, seen = read(own)
        of_mean, _ = read(move(start, mean, strength))
        rows.append(
            {
                "strength": strength,
                "style": _share([style == ADDED[0] for style in styles]),
                "style, mean of all pairs": _share([style == ADDED[0] for style in of_mean]),
                "concept kept": _share(seen[plain_seen].tolist()),
            }
        )
    return rows


def projection(pipe: Pipeline, evaluator: Evaluator, prompts: Sequence[str], img: Tensor) -> dict[str, float]:
    """How near pictures are found from their prompts, in units of the mean distance between two of them."""
    fetch("lite0", progress=True)
    network = load_efficientnet_lite("lite0", pipe.device)
    start = pipe.latents(prompts, pipe.z([0] * len(prompts)), 0.0)
    parts = [slice(n, n + BATCH) for n in range(0, len(img), BATCH)]
    found = Latents.join([project(pipe.generator, start[p], img[p], network) for p in tqdm(parts, desc="projected")])

    def distance(a: Tensor, b: Tensor) -> Tensor:
        run = evaluator.network.run
        return torch.cat([perceptual_distance(run(a[p]), run(b[p])) for p in parts])

    two = float(distance(img, img.roll(1, 0)).mean())
    after, before = (distance(pipe.draw(points)[0], img) / two for points in (found, start))
    return {
        "pictures": len(img),
        "two pictures": two,
        "mean": float(after.mean()),
        "found": _share((after <= 0.25).tolist()),
        "mean of the prompts alone": float(before.mean()),
        "found by the prompts alone": _share((before <= 0.25).tolist()),
    }


def generated(pipe: Pipeline, things: Sequence[str]) -> tuple[list[str], Tensor]:
    """Prompts, and their pictures without truncation."""
    prompts = [COARSE[1].format(thing) for thing in things]
    return prompts, pipe.draw(pipe.latents(prompts, pipe.z(range(len(prompts))), 1.0))[0]


def held_out(evaluator: Evaluator, data: Captioned, resolution: int) -> tuple[list[str], Tensor]:
    """Captions and real pictures of pairs that training hasn't seen, drawn by a fixed seed."""
    pictures = [p for p in evaluator.real.pictures if p.split == "test_pair"]
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:REAL].tolist()
    img = as_batch([data[pictures[n].index].image for n in order])
    assert img.shape[-1] == resolution, img.shape
    return [pictures[n].caption for n in order], img


def judged(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar beside its figure; of mixing at the layer that comes nearest to both."""
    best = nearest(measured["mixing"], "style changed")
    added = next(row for row in measured["arithmetic"] if row["strength"] == 1)
    figures = {
        "mixing, style changed": best["style changed"],
        "mixing, concept kept": best["concept kept"],
        "arithmetic, style": added["style"],
    }
    if "projection" in measured:
        figures["projection, found"] = measured["projection"]["found"]
    verdicts = {
        name: {"value": value, "bar": BARS[name], "held": value >= BARS[name]} for name, value in figures.items()
    }
    verdicts["mixing, style changed"]["layer"] = verdicts["mixing, concept kept"]["layer"] = best["layer"]
    return verdicts


def nearest(rows: Sequence[dict[str, float]], changed: str) -> dict[str, float]:
    """The boundary that comes nearest to both bars of mixing, with `changed` for the style's."""
    bars = {changed: BARS["mixing, style changed"], "concept kept": BARS["mixing, concept kept"]}
    return max(rows, key=lambda row: min(row[name] / bar for name, bar in bars.items()))


def plot(measured: dict[str, Any], path: Path) -> None:
    """Both curves of mixing over layers, of arithmetic over strengths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    shown: dict[str, tuple[Any, str, dict[str, str]]] = {
        "mixing": (
            left,
            "layer",
            {
                "style": "reads as black and white icon",
                "style changed": "reads as no 3D render",
                "concept kept": "concept kept in top 5",
            },
        ),
        "arithmetic": (
            right,
            "strength",
            {"style": "reads as flat icon", "style, mean of all pairs": "the same, mean of all pairs"},
        ),
    }
    for part, (panel, axis, names) in shown.items():
        for name, label in names.items():
            points = [(row[axis], row[name]) for row in measured[part]]
            panel.plot(*zip(*points, strict=True), "o-", label=label)
        panel.set(ylim=(-0.03, 1.03), ylabel="share of pictures")
        panel.grid(alpha=0.3)
        panel.legend()
    left.axhline(BARS["mixing, style changed"], color="grey", lw=0.8, ls=":")
    right.axhline(BARS["arithmetic, style"], color="grey", lw=0.8, ls=":")
    right.axhline(measured["plain"][ADDED[0]]["style"], color="C0", lw=0.8, ls="--")
    right.text(0, measured["plain"][ADDED[0]]["style"] + 0.01, "plain flat icons")
    left.set(xlabel="first layer of the fine prompt", title="Prompt mixing: 3D render with black and white icon")
    right.set(xlabel="strength", title="w(flat icon) - w(3D render), added to a 3D render")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _points(pipe: Pipeline, template: str, things: Sequence[str], psi: float) -> Latents:
    return pipe.latents([template.format(thing) for thing in things], pipe.z(range(len(things))), psi)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / max(len(hits), 1)


if __name__ == "__main__":
    sys.exit(main())
