"""A miniature of the emoji packages, in the real formats, and small sets of pictures."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gigagan.data import emoji
from gigagan.data.emoji_names import slug
from gigagan.data.shards import write_shards

SUBGROUPS = ["food-fruit", "person-role", "lock", "time", "keycap", "country-flag"]
# Label, hex code, group, subgroup.
LABELS = [
    ("red apple", "1F34E", 4, 0),
    ("grapes", "1F347", 4, 0),
    ("artist", "1F9D1-200D-1F3A8", 1, 1),
    ("man artist", "1F468-200D-1F3A8", 1, 1),
    ("woman artist", "1F469-200D-1F3A8", 1, 1),
    ("locked", "1F512", 7, 2),
    ("three o\u2019clock", "1F552", 5, 3),
    ("red heart", "2764-FE0F", 0, 0),
    ("keycap: 5", "35-FE0F-20E3", 8, 4),
    ("flag: France", "1F1EB-1F1F7", 9, 5),
]
COLORS = {"red-apple": "#d22", "grapes": "#83c", "red-heart": "#f00"}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _icons(names: list[str]) -> dict[str, Any]:
    bodies = {
        name: {"body": f'<circle cx="16" cy="16" r="12" fill="{COLORS.get(name, "currentColor")}"/>'} for name in names
    }
    return {"prefix": "x", "icons": bodies, "width": 32, "height": 32}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as `packages.fetch` leaves them: names, one set by hex code, one by name, one of image files."""
    root = tmp_path_factory.mktemp("packages")
    entries = [
        {"label": label, "hexcode": code, "group": group, "subgroup": subgroup, "tags": ["x"], "version": 1}
        for label, code, group, subgroup in LABELS
    ]
    _write(root / "names/en/data.json", entries)
    _write(root / "names/en/messages.json", {"subgroups": [{"order": i, "key": k} for i, k in enumerate(SUBGROUPS)]})

    by_code = {code.replace("-FE0F", "").lower(): slug(label) for label, code, _, _ in LABELS}
    _write(root / "flat/icons.json", _icons([name for name in by_code.values() if name != "grapes"]))
    _write(root / "flat/chars.json", by_code)

    book = _icons(["red-apple", "grapes-1", "grapes-2", "man-artist", "lock"])
    book["aliases"] = {"locked": {"parent": "lock", "hFlip": True}}
    _write(root / "doodle/icons.json", book)

    for index, (_, code, _, _) in enumerate(LABELS):
        image = Image.new("RGBA", (48, 48))
        image.paste((200, 20 * index, 30, 255), (8, 8, 40, 40))
        (root / "3d/assets").mkdir(parents=True, exist_ok=True)
        image.save(root / f"3d/assets/{code.lower()}.webp", lossless=True)
    return {name: root / name for name in ("names", "3d", "flat", "doodle")}


@pytest.fixture(scope="session")
def emoji_set(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set built from the miniature packages at 16 px."""
    out = tmp_path_factory.mktemp("sets") / "emoji"
    emoji.build(packages, out, resolution=16, seed=0, processes=1)
    return out


@pytest.fixture
def pictures() -> list[tuple[str, bytes, str]]:
    """Twelve noisy opaque pictures: key, PNG, caption."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(12):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (10, 14, 3), np.uint8)).save(buffer, "PNG")
        made.append((f"k{index:02d}", buffer.getvalue(), f"picture number {index}"))
    return made


@pytest.fixture
def shard_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes shards of (key, picture, caption), so many samples each."""

    def write(samples: list[tuple[str, bytes, str]], *, shards: int = 1, name: str = "shards") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(shards):
            part = samples[number::shards]
            write_shards(((key, image, {"text": text}) for key, image, text in part), folder, split="", first=number)
        return folder

    return write
