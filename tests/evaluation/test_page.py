"""The page: one file that fetches nothing, with every figure and picture, and no text of others taken for markup."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gigagan.data.dataset import Sample
from gigagan.evaluation.evaluate import Figure, Measured, Request
from gigagan.evaluation.features import Features
from gigagan.evaluation.nearest import Neighbour
from gigagan.evaluation.page import NUM_OPEN, NUM_PER_STYLE, as_html, as_png
from gigagan.evaluation.real import RealSet, describe

VOID = {"meta", "img"}
EVIL = '<script>alert("x")</script> & "more"'
NUM = 60  # main pictures
TWICE = 24  # drawn with another seed as well; the first of its style


class Read(HTMLParser):
    """Checks that tags are closed in order, and keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    main = [Request(f"{EVIL} {n}" if n == TWICE else f"prompt {n}", n, n % 36) for n in range(NUM)]
    return [*main, Request(main[TWICE].text, NUM, TWICE, "again"), Request("bare", 0, 0, "plain")]


@pytest.fixture(scope="module")
def made(world: list[Sample], requests: list[Request]) -> str:
    none = torch.zeros(len(world), 1)
    real = RealSet([describe(i, s) for i, s in enumerate(world)], Features(none, none, none), "hash")
    pictures = [as_png(np.full((32, 32, 3), n, dtype=np.uint8)) for n in range(len(requests))]
    # The later, the nearer.
    nearest = [Neighbour((n + 1) % 36, float(NUM - n)) for n in range(NUM)]
    figures = [
        Figure("style read", 0.5, 0.9, 1 / 9, share=True),
        Figure("distance to the nearest training picture, median", 30.0, 20.25),
    ]
    about = {"model": f"my {EVIL}", "seconds_per_picture": 0.02}
    return as_html(Measured(figures, nearest), requests, pictures, real, world, about, {"protocol <b>": EVIL})


def test_it_is_whole_and_fetches_nothing(made: str) -> None:
    read = Read()
    read.feed(made)
    assert read.open == []
    assert not {"script", "link", "iframe", "object", "form"} & set(read.tags)
    sources = [value for name, value in read.attributes if name in ("src", "href", "action", "srcset")]
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in sources)
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert "url(" not in made
    assert "@import" not in made


def test_text_of_others_stays_text(made: str) -> None:
    read = Read()
    read.feed(made)
    assert "<script" not in made
    assert f"my {EVIL}, measured" in read.text
    assert read.text.count(EVIL) >= 5
    assert any(name == "alt" and value is not None and EVIL in value for name, value in read.attributes)


def test_figures_stand_beside_real_and_chance(made: str) -> None:
    cells = re.findall(r"<td>(.*?)</td>", made)
    assert cells[:4] == ["style read", "50.0 %", "90.0 %", "11.1 %"]
    assert "seconds per picture</dt><dd>0.02</dd>" in made


def test_pictures_are_the_first_of_each_style(made: str, world: list[Sample]) -> None:
    part = made.split("<h2>Pictures</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", part) == ["bold", "pale", "striped"]
    assert part.count("<img") == 3 * NUM_PER_STYLE
    # Twelve pictures a style in the world; requests come in its order.
    assert re.findall(r"seed (\d+)", part)[: 2 * NUM_PER_STYLE] == [str(n) for n in (*range(6), *range(12, 18))]


def test_two_seeds_of_a_prompt_stand_together(made: str) -> None:
    part = made.split("<h2>Two seeds of a prompt</h2>")[1].split("<h2>")[0]
    assert re.findall(r"seed (\d+)</p>", part) == [str(TWICE), str(NUM)]


def test_every_picture_has_its_neighbour_the_nearest_first(made: str, world: list[Sample]) -> None:
    part = made.split("<h2>Nearest training pictures</h2>")[1].split("<h2>")[0]
    distances = [float(found) for found in re.findall(r"distance ([0-9.]+)", part)]
    assert distances == sorted(distances)
    assert len(distances) == NUM
    assert "The other 6, in the same order" in part
    assert part.split("<details>")[0].count("<figure") == NUM_OPEN
    assert "at 20.25 from theirs" in part
    # The last request has the nearest neighbour: sample (59 + 1) % 36 of the data, pixel for pixel.
    encoded = re.findall(r"base64,([^\"]+)", part)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
    assert (shown == world[24].image).all()
    assert world[24].captions[2].text in part.split("</figure>")[0]


def test_large_and_transparent_pictures_are_brought_to_the_page(painter: Callable[..., NDArray[np.uint8]]) -> None:
    large = np.zeros((512, 512, 4), dtype=np.uint8)
    shown = Image.open(io.BytesIO(as_png(large)))
    assert (shown.size, shown.mode) == ((128, 128), "RGB")
    assert shown.getextrema() == ((255, 255),) * 3
    small = painter("bold", "disc", "left")
    assert (np.asarray(Image.open(io.BytesIO(as_png(small)))) == small).all()
