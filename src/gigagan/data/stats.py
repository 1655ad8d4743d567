"""What the samples of an indexed set are like: spreads of their numbers, and a page that draws them."""

from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from gigagan.data.index import IndexedSource

BINS = 40
QUANTILES = {"least": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "most": 1.0}
WIDTH, HEIGHT = 480, 120


@dataclass(frozen=True)
class Spread:
    """One number of every sample."""

    title: str
    points: dict[str, float]
    """Quantiles."""
    edges: list[float]
    counts: list[int]
    """Samples between neighboring edges."""
    missing: int = 0
    """Samples without it."""


def summary(source: IndexedSource) -> list[Spread]:
    """Spreads of the shorter side, the aspect ratio, the caption length, and every score that is stored."""
    width, height = source.shown("width").astype(np.float64), source.shown("height").astype(np.float64)
    columns = {
        "shorter side (px)": np.minimum(width, height),
        "width / height": width / height,
        "characters of the first caption": source.shown("characters").astype(np.float64),
    }
    for name in source.scores:
        columns[name] = source.shown(f"scores.{name}").astype(np.float64)
    return [_spread(title, values) for title, values in columns.items()]


def _spread(title: str, values: Float[np.ndarray, " n"]) -> Spread:
    known = values[np.isfinite(values)]
    if not len(known):
        return Spread(title, {}, [], [], len(values))
    points = dict(zip(QUANTILES, np.quantile(known, list(QUANTILES.values())).tolist(), strict=True))
    # Drawn between the outermost hundredths, so that one odd sample doesn't flatten all others.
    low, high = points["1 %"], points["99 %"]
    counts, edges = np.histogram(known.clip(low, high), bins=BINS, range=(low, high if high > low else low + 1))
    return Spread(title, points, edges.tolist(), counts.tolist(), len(values) - len(known))


def page(name: str, samples: int, spreads: list[Spread]) -> str:
    """A self-contained HTML page with a histogram for each spread."""
    body = "\n".join(_figure(spread) for spread in spreads)
    style = "body{font:15px system-ui;margin:2rem auto;max-width:32rem}figure{margin:1.5rem 0}rect{fill:#4a7ebb}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{style} figcaption{{font-weight:600}} p{{margin:.2rem 0;color:#555}}</style></head><body>\n"
        f"<h1>{escape(name)}</h1>\n<p>{samples:,} samples. Histograms run from the 1st to the 99th hundredth.</p>\n"
        f"{body}\n</body></html>\n"
    )


def _figure(spread: Spread) -> str:
    most = max(spread.counts, default=0) or 1
    step = WIDTH / BINS
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{HEIGHT - HEIGHT * n / most:.1f}" width="{step - 1:.1f}" '
        f'height="{HEIGHT * n / most:.1f}"><title>{spread.edges[i]:g} to {spread.edges[i + 1]:g}: {n:,}</title></rect>'
        for i, n in enumerate(spread.counts)
    )
    points = ", ".join(f"{name} {value:g}" for name, value in spread.points.items())
    missing = f"; {spread.missing:,} without" if spread.missing else ""
    ends = (spread.edges[0], spread.edges[-1]) if spread.edges else (0, 0)
    return (
        f"<figure><figcaption>{escape(spread.title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 18}" role="img" aria-label="{escape(spread.title)}">{bars}'
        f'<text x="0" y="{HEIGHT + 15}" font-size="12">{ends[0]:g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 15}" font-size="12" text-anchor="end">{ends[1]:g}</text></svg>'
        f"<p>{escape(points)}{missing}</p></figure>"
    )
