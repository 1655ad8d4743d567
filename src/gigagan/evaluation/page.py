"""One HTML page of what was measured: figures and pictures, all within the file; no script, nothing fetched."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gigagan.data.sampling import WHITE, composite
from gigagan.evaluation import report
from gigagan.evaluation.evaluate import Figure, Measured, Request, Role
from gigagan.evaluation.real import Captioned, RealSet

SIDE = 128
"""Larger pictures are shown at this side."""
NUM_PER_STYLE = 6
NUM_OPEN = 54
"""Pictures of a list that are seen without unfolding the rest."""
STYLE = """
:root { color-scheme: light dark; font: 100%/1.45 system-ui, sans-serif }
body { max-width: 68rem; margin: 0 auto; padding: 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem } h3 { margin: 1.5rem 0 .5rem; font-size: 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #8885; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; font-weight: normal; white-space: normal }
dl { display: grid; grid-template-columns: minmax(7rem, 12rem) 1fr; gap: .3rem 1rem; margin: 0 }
dd { margin: 0; overflow-wrap: anywhere }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem 1rem }
figure { margin: 0; font-size: .8rem; overflow-wrap: anywhere }
figure p { margin: 0 } .two { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; max-width: 17rem }
img { display: block; width: 100%; max-width: 8rem; height: auto; background: #fff }
summary { margin: 1.5rem 0; cursor: pointer }
@media (max-width: 30rem) { dl { grid-template-columns: 7rem 1fr } dl, th, td { font-size: .85rem } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
UNCURATED = "The first of each style, in the order of their seeds; none was chosen."
NEAREST = (
    "Every picture, with the training picture nearest to it by the pooled features; the smallest distance first. "
    "A copy is at 0. Held-out real pictures are at {} from theirs (median)."
)


def as_png(image: UInt8[np.ndarray, "H W C"]) -> bytes:
    """A picture on white as a PNG file, at most SIDE wide and high."""
    picture = Image.fromarray(composite(image, WHITE))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def as_html(
    measured: Measured,
    requests: Sequence[Request],
    pictures: Sequence[bytes],
    real: RealSet,
    data: Captioned,
    about: Mapping[str, Any],
    protocol: Mapping[str, str] = report.PROTOCOL,
) -> str:
    """The page; `pictures` are the PNG files in the order of the requests, `data` is what `real` was read from."""
    title = f"{escape(str(about['model']))}, measured"
    said = _terms({name.replace("_", " "): value for name, value in about.items()})
    sections = {
        title: said,
        "Figures": _table(measured.figures),
        "Pictures": "".join(_by_style(requests, pictures, real)),
        "Two seeds of a prompt": "".join(_pairs(requests, pictures)),
        "Nearest training pictures": "".join(_nearest(measured, requests, pictures, real, data)),
        "How it was measured": _terms(protocol),
    }
    body = "\n".join(
        f"<h{min(n, 2)}>{heading}</h{min(n, 2)}>\n{content}" for n, (heading, content) in enumerate(sections.items(), 1)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _terms(said: Mapping[str, Any]) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in said.items())
    return f"<dl>{''.join(rows)}</dl>"


def _table(figures: Sequence[Figure]) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"

    rows = "\n".join(row(report.row(figure), "td") for figure in figures)
    return f"<table>\n<thead>{row(report.HEADINGS, 'th')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _by_style(requests: Sequence[Request], pictures: Sequence[bytes], real: RealSet) -> Iterator[str]:
    """The first pictures of each style; of data without styles the first of all."""
    by_style: dict[str, list[str]] = defaultdict(list)
    for r, picture in zip(requests, pictures, strict=True):
        if r.role == "main":
            by_style[real.pictures[r.item].style].append(_figure(picture, r.text, f"seed {r.seed}"))
    yield f"<p>{UNCURATED}</p>" if real.styles else "<p>The first, in the order of their seeds; none was chosen.</p>"
    for style, figures in sorted(by_style.items()):
        shown = figures[: NUM_PER_STYLE if real.styles else NUM_OPEN]
        yield f"<h3>{escape(style)}</h3><div class=grid>{''.join(shown)}</div>\n"


def _pairs(requests: Sequence[Request], pictures: Sequence[bytes]) -> Iterator[str]:
    """Both pictures of every prompt that was drawn twice."""
    found = {(r.role, r.item): (r, picture) for r, picture in zip(requests, pictures, strict=True)}
    kinds: tuple[tuple[Role, Role, str], ...] = (
        ("main", "again", "Prompts with a style"),
        ("plain", "plain again", "Prompts without a style"),
    )
    for first, second, heading in kinds:
        both = [(found[first, item], found[second, item]) for role, item in found if role == second]
        figures = [_two((a, f"seed {one.seed}"), (b, f"seed {other.seed}"), one.text) for (one, a), (other, b) in both]
        if figures:
            yield f"<h3>{heading}</h3>{_folded(figures)}\n"


def _nearest(
    measured: Measured, requests: Sequence[Request], pictures: Sequence[bytes], real: RealSet, data: Captioned
) -> Iterator[str]:
    """Every main picture beside its neighbour in training, the nearest first."""
    main = [(r, picture) for r, picture in zip(requests, pictures, strict=True) if r.role == "main"]
    ranked = sorted(zip(main, measured.nearest, strict=True), key=lambda pair: pair[1].distance)
    of_real = next((f.real for f in measured.figures if f.name.startswith("distance to the nearest")), None)
    if of_real is not None:
        yield f"<p>{NEAREST.format(f'{of_real:.2f}')}</p>"
    figures = []
    for (r, picture), neighbour in ranked:
        known = real.pictures[neighbour.item]
        own = "; its prompt's own picture" if neighbour.item == r.item else ""
        lines = (r.text, f"training: {known.caption}{own}", f"distance {neighbour.distance:.2f}")
        figures.append(_two((picture, "drawn"), (as_png(data[known.index].image), "training"), *lines))
    yield _folded(figures)


def _folded(figures: Sequence[str]) -> str:
    """The first few open, the rest, in the same order, to be unfolded."""
    shown = f"<div class=pairs>{''.join(figures[:NUM_OPEN])}</div>"
    rest = figures[NUM_OPEN:]
    if not rest:
        return shown
    summary = f"<summary>The other {len(rest)}, in the same order</summary>"
    return f"{shown}<details>{summary}<div class=pairs>{''.join(rest)}</div></details>"


def _figure(picture: bytes, *lines: str) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<figure>{_img(picture, lines[0])}<figcaption>{text}</figcaption></figure>"


def _two(left: tuple[bytes, str], right: tuple[bytes, str], *lines: str) -> str:
    sides = "".join(f"<div>{_img(picture, said)}<p>{escape(said)}</p></div>" for picture, said in (left, right))
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<figure><div class=two>{sides}</div><figcaption>{text}</figcaption></figure>"


def _img(picture: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
