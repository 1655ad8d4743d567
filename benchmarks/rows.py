"""The rows: who is beside whom, and what has to hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from harness import Interleaved, Result, Side

Arithmetic = Literal["float32", "bfloat16"]
BOTH: tuple[Arithmetic, ...] = ("float32", "bfloat16")
CURVES = {"pixels": (16, 32, 64, 128, 256), "batch": (1, 2, 4, 8, 16)}
"""Sides of the picture, and pictures drawn at once at 64 px."""


@dataclass(frozen=True)
class Verdict:
    """A figure beside its bar."""

    what: str
    value: float
    bar: str
    passed: bool | None
    """None where nothing is asked of it."""


class Check(Protocol):
    """Something to be told of a row's results."""

    def verdicts(self, row: Interleaved) -> list[Verdict]:
        """Empty where a side that it needs has failed."""


@dataclass(frozen=True)
class Ratio:
    """A figure of one side over that of another, at most `most`."""

    of: str
    over: str
    most: float | None = None
    figure: Literal["sec_per_image", "peak_mib", "gflop_per_image"] = "sec_per_image"

    def verdicts(self, row: Interleaved) -> list[Verdict]:
        if self.of not in row.results or self.over not in row.results:
            return []
        of, over = row.results[self.of], row.results[self.over]
        value = _figure(of, self.figure) / _figure(over, self.figure)
        what = {"sec_per_image": "time a picture", "peak_mib": "peak memory", "gflop_per_image": "GFLOP a picture"}
        bar = "" if self.most is None else f"<= {self.most:.3g}"
        passed = None if self.most is None else value <= self.most
        return [Verdict(f"{what[self.figure]}: {self.of} / {self.over}", value, bar, passed)]


@dataclass(frozen=True)
class Share:
    """Achieved GFLOP/s over the GEMM peak of the same row, at least `least`."""

    of: str
    least: float

    def verdicts(self, row: Interleaved) -> list[Verdict]:
        if self.of not in row.results:
            return []
        value = row.share_of_peak(row.results[self.of])
        return [Verdict(f"share of the GEMM peak: {self.of}", value, f">= {self.least:.3g}", value >= self.least)]


@dataclass(frozen=True)
class Seconds:
    """Seconds a picture, at most `most`."""

    of: str
    most: float

    def verdicts(self, row: Interleaved) -> list[Verdict]:
        if self.of not in row.results:
            return []
        value = row.results[self.of].sec_per_image
        return [Verdict(f"seconds a picture: {self.of}", value, f"<= {self.most:.3g}", value <= self.most)]


@dataclass(frozen=True)
class Growth:
    """No step of a curve worse than linear by more than a tenth: time over output pixels, or over the batch."""

    of: str
    over: Literal["pixels", "batch"]

    def points(self, result: Result) -> list[tuple[float, float, float]]:
        """(x, seconds of the pass, seconds a picture) with x = output pixels, or pictures in the batch."""
        values = CURVES[self.over]
        times = [result.part(str(value)) for value in values]
        if self.over == "pixels":
            return [(side * side, sec, sec) for side, sec in zip(values, times, strict=True)]
        return [(batch, sec, sec / batch) for batch, sec in zip(values, times, strict=True)]

    def verdicts(self, row: Interleaved) -> list[Verdict]:
        if self.of not in row.results:
            return []
        points = self.points(row.results[self.of])
        steps = [(b[1] / a[1]) / (b[0] / a[0]) for a, b in pairwise(points)]
        worst = max(range(len(steps)), key=lambda i: steps[i])
        what = f"worst step over linear: {self.of} ({points[worst][0]:g} to {points[worst + 1][0]:g} {self.over})"
        return [Verdict(what, steps[worst], "<= 1.1", steps[worst] <= 1.1)]


@dataclass(frozen=True)
class Row:
    """Sides that take turns."""

    name: str
    title: str
    sides: list[Side]
    checks: Sequence[Check] = ()


def _figure(result: Result, figure: str) -> float:
    return result.gflop / result.images if figure == "gflop_per_image" else float(getattr(result, figure))


def _peer(label: str, function: str, package: str, *, keep: bool = False, **arguments: object) -> Side:
    arithmetic = "float32" if arguments.get("arithmetic", "float32") == "float32" else "bfloat16"
    return Side(label, f"peers:{function}", arguments, keep, (package,), arithmetic)


def _training(name: str, title: str, preset: str, *, batch: int, cached: bool, most: float, memory: bool) -> Row:
    """A training preset of ours against gigagan-pytorch's small configuration."""
    ours = [
        Side(
            f"{preset} {kind}",
            "ours:training",
            {"preset": preset, "overrides": [f"train.dtype={kind}"]},
            True,
            (),
            kind,
        )
        for kind in BOTH
    ]
    theirs = [
        _peer(label, "gigagan_training", "gigagan_pytorch", keep=keep, batch=batch, cached_text=cached)
        for label, keep in (("gigagan-pytorch", False), ("gigagan-pytorch, memory kept", True))
    ]
    checks: list[Check] = [Ratio(a.label, b.label, most) for a in ours for b in theirs]
    checks += [Ratio(a.label, b.label, 0.5, "peak_mib") for a in ours for b in theirs if memory]
    checks += [Ratio(a.label, theirs[0].label, None, "gflop_per_image") for a in ours[:1]]
    return Row(name, title, [*ours, *theirs], checks)


def _forward(batch: int) -> Row:
    """Our generators against gigagan-pytorch's base one, at equal GFLOP and at equal parameters."""
    presets = {"equal GFLOP": ("peer_base_flops", 0.5), "equal parameters": ("peer_base_params", 0.4)}
    ours = {
        (alike, kind): Side(
            f"{alike}, {kind}", "ours:forward", {"preset": preset, "batch": batch, "dtype": kind}, True, (), kind
        )
        for alike, (preset, _) in presets.items()
        for kind in BOTH
    }
    theirs = [
        _peer(
            f"gigagan-pytorch, {arithmetic}{', memory kept' * keep}",
            "gigagan_forward",
            "gigagan_pytorch",
            keep=keep,
            size="base",
            batch=batch,
            arithmetic=arithmetic,
        )
        for arithmetic in ("float32", "autocast")
        for keep in (False, True)
    ]
    checks: list[Check] = [
        Ratio(side.label, peer.label, presets[alike][1]) for (alike, _), side in ours.items() for peer in theirs
    ]
    checks += [Ratio(ours[alike, "float32"].label, theirs[0].label, None, "gflop_per_image") for alike in presets]
    title = f"Generator forward, batch {batch}, text encoded before, against gigagan-pytorch's 77 M"
    return Row(f"forward-b{batch}", title, [*ours.values(), *theirs], checks)


def _own_forward(label: str, preset: str, batch: int, kind: Arithmetic) -> Side:
    return Side(label, "ours:forward", {"preset": preset, "batch": batch, "dtype": kind}, True, (), kind)


def _dtype_row() -> Row:
    """bf16 against float32 of our own, generators of 64 and more channels everywhere."""
    presets = {"77 M": "peer_base_params", "102 M": "peer_base_flops", "paper size": "defaults"}
    sides, checks = [], []
    for label, preset in presets.items():
        sides += [_own_forward(f"{label}, {kind}", preset, 1, kind) for kind in BOTH]
        checks.append(Ratio(f"{label}, bfloat16", f"{label}, float32", 1 / 1.5))
    return Row("dtype-forward", "bfloat16 against float32, generator forward, batch 1", sides, checks)


def _diffusion(size: str) -> list[Side]:
    """One-step diffusion at 512 px, at each of its settings."""
    return [
        _peer(f"{size}, float32 channels-last", "diffusion", "diffusers", keep=True, size=size, arithmetic="float32"),
        _peer(
            f"{size}, bfloat16 channels-last",
            "diffusion",
            "diffusers",
            keep=True,
            size=size,
            arithmetic="channels_last",
        ),
        Side(
            f"{size}, OpenVINO bf16",
            "peers:diffusion_openvino",
            {"size": size, "precision": "bf16"},
            True,
            ("diffusers", "openvino"),
            "bfloat16",
        ),
    ]


def _large_picture() -> Row:
    """The shipped model to 512 px against the smallest of the one-step diffusions at its best."""
    ours = [_own_large(kind, "shipped") for kind in BOTH]
    theirs = _diffusion("sdxs")
    checks: list[Check] = [Seconds(side.label, 1.0) for side in ours]
    checks += [Ratio(side.label, peer.label, 1 / 3) for side in ours for peer in theirs]
    title = "Prompt to 512 px, text encoder included, batch 1, against SDXS's size + TAESD without its text encoder"
    return Row("picture-512", title, [*ours, *theirs], checks)


def _own_large(kind: Arithmetic, size: str) -> Side:
    return Side(f"{size}, {kind}", "ours:large_picture", {"dtype": kind, "size": size}, True, (), kind)


def _aura(tiles: int, most: float) -> Row:
    """Our network of aura-sr's size and task against aura-sr at its best."""
    side = 64 * math.isqrt(tiles)
    kinds: tuple[Arithmetic, ...] = BOTH if tiles == 1 else BOTH[1:]  # all sides of many tiles need more than 24 GB
    ours = {kind: Side(f"ours, {kind}", "ours:tiles", {"dtype": kind, "side": side}, True, (), kind) for kind in kinds}
    theirs = [
        _peer(
            f"aura-sr, {arithmetic}{', memory kept' * keep}",
            "aura_tiles",
            "aura_sr",
            keep=keep,
            arithmetic=arithmetic,
            count=tiles,
        )
        for arithmetic, keep in (("float32", False), ("float32", True), ("autocast", True))
    ]
    # Its best is the fastest of its settings, so a bar holds where it does beside each of them.
    best = ours["bfloat16"].label
    checks: list[Check] = [Ratio(best, peer.label, most) for peer in theirs]
    checks += [Ratio(best, theirs[0].label, 1.2, "gflop_per_image")]
    if "float32" in ours:
        checks += [Ratio(ours["float32"].label, peer.label) for peer in theirs]
        checks += [Ratio(best, ours["float32"].label, 1.0)]
    plural = "s" if tiles > 1 else ""
    return Row(
        f"aura-{tiles}", f"{tiles} tile{plural} of 64 px to 256 px against aura-sr's", [*ours.values(), *theirs], checks
    )


ROWS = [
    _training(
        "train-like",
        "D + G training step, like for like, batch 16, text cached (16 tokens) on both sides",
        "peer_small",
        batch=16,
        cached=True,
        most=1 / 2.5,
        memory=True,
    ),
    _training(
        "train-preset",
        "D + G training step: emoji64 (batch 32) against gigagan-pytorch as it comes, batch 4, CLIP run by it",
        "emoji64",
        batch=4,
        cached=False,
        most=1 / 10,
        memory=False,
    ),
    _forward(1),
    _forward(4),
    Row(
        "paper-size",
        "The paper-size 64 px generator, bfloat16",
        [_own_forward(f"batch {batch}", "defaults", batch, "bfloat16") for batch in (1, 4)],
        [Share(f"batch {batch}", 0.4) for batch in (1, 4)],
    ),
    _dtype_row(),
    Row(
        "dtype-train",
        "bfloat16 against float32, a training step of emoji64",
        [
            Side(kind, "ours:training", {"preset": "emoji64", "overrides": [f"train.dtype={kind}"]}, True, (), kind)
            for kind in BOTH
        ],
        [Ratio("bfloat16", "float32", 1 / 1.2)],
    ),
    Row(
        "picture",
        "A 64 px picture from a new prompt, text encoder included, warm, batch 1, the shipped model",
        [Side(kind, "ours:picture", {"dtype": kind}, True, (), kind) for kind in BOTH],
        [Seconds(kind, 0.15) for kind in BOTH],
    ),
    Row(
        "sixteen",
        "16 new prompts at once against 16 calls, the shipped model",
        [
            Side(f"{how}, {kind}", "ours:sixteen", {"together": how == "one call", "dtype": kind}, True, (), kind)
            for how in ("one call", "16 calls")
            for kind in BOTH
        ],
        [Ratio(f"one call, {kind}", f"16 calls, {kind}", 1 / 1.5) for kind in BOTH],
    ),
    Row(
        "growth",
        "Cost growth of emoji64's family: over output pixels (16 ... 256 px), and over the batch at 64 px (1 ... 16)",
        [
            Side(f"{over}, {kind}", "ours:curve", {"over": over, "values": CURVES[over], "dtype": kind}, True, (), kind)
            for over in ("pixels", "batch")
            for kind in BOTH
        ],
        [Growth(f"pixels, {kind}", "pixels") for kind in BOTH] + [Growth(f"batch, {kind}", "batch") for kind in BOTH],
    ),
    _large_picture(),
    Row(
        "picture-150",
        "Prompt to 512 px through networks of more than 150 GFLOP, random weights, text encoder included, batch 1",
        [_own_large(kind, "large") for kind in BOTH],
        [Seconds("large, bfloat16", 1.0)],
    ),
    _aura(1, 1 / 1.5),
    _aura(16, 1 / 2.5),
    Row(
        "upsample-4096",
        "512 to 4096 px as 64 pictures of 512 px, the shipped upsampler",
        [
            Side(f"{side * 8} px, {kind}", "ours:enlarged", {"dtype": kind, "side": side}, True, (), kind)
            for side in (64, 512)
            for kind in BOTH
        ],
        [Ratio(f"4096 px, {kind}", f"512 px, {kind}", 1.2) for kind in BOTH],
    ),
    Row(
        "info-turbo",
        "For information: one-step diffusion of SD-Turbo's size + TAESD, 512 px, without its text encoder",
        _diffusion("turbo"),
    ),
]
