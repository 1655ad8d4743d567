"""The documents' own commands, in order, on a small scale.

Every ```bash and ```python block of a document runs in one folder, as a reader would type it. SCALE makes a line small
enough for CI; a line that it names and the document no longer has is an error, so the two can't drift apart.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
SHORT = " train.batch=16 train.batch_gpu=8"
TUNE = "gigagan train emoji64 --run-dir runs/mine data.path=my-pictures init=emoji train.freeze_D=2 train.total_kimg="

FEW = ("cat", "green-apple", "house", "rainbow", "red-apple", "rocket", "scissors", "star", "strawberry", "sunflower")

FRUIT = 'gigagan video "a red apple" "a blue heart" "a green leaf" --loop --seconds 1 --out fruit.webp'
FACE = 'gigagan video "a smiling face" --seeds 0-3 --psi 1 --loop --fps 12 --out face.gif'

SCALE = {
    "README.md": {
        "gigagan data emoji --out data/emoji --resolution 64": (
            "gigagan data emoji --out data/emoji --resolution 64 --only " + ",".join(FEW)
        ),
        "gigagan train emoji64 --run-dir runs/emoji data.path=data/emoji": (
            "gigagan train emoji64 --run-dir runs/emoji data.path=data/emoji train.total_kimg=0.032" + SHORT
        ),
        "gigagan evaluate runs/emoji/model --data data/emoji": (
            "gigagan evaluate runs/emoji/model --data data/emoji --num 18"
        ),
    },
    "docs/your-data.md": {
        TUNE + "20": TUNE + "0.016" + SHORT,
        TUNE + "40": TUNE + "0.032" + SHORT,
        "gigagan evaluate runs/mine/model --data my-pictures": (
            "gigagan evaluate runs/mine/model --data my-pictures --num 18"
        ),
    },
    "docs/editing.md": {
        FRUIT: FRUIT.replace("--seconds 1", "--seconds 1 --fps 2"),
        FACE: FACE.replace("--fps 12", "--fps 2"),
    },
    "docs/export.md": {},
    "docs/serving.md": {},
}

COLORS = {"red": (220, 50, 40), "green": (60, 170, 80), "blue": (60, 110, 220), "yellow": (240, 210, 60)}
SHAPES = ("circle", "square", "triangle", "ring", "cross")


def draw(folder: Path, count: int) -> None:
    """Somebody's own pictures: colored shapes with a caption each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for n in range(count):
        color, shape = list(COLORS)[n % len(COLORS)], SHAPES[n // len(COLORS) % len(SHAPES)]
        img = Image.new("RGB", (96, 80 + n % 3 * 16), "white")
        pen = ImageDraw.Draw(img)
        x, y, r = (int(value) for value in random.integers((40, 35, 15), (56, 45, 30)))
        box = (x - r, y - r, x + r, y + r)
        if shape == "circle":
            pen.ellipse(box, fill=COLORS[color])
        elif shape == "ring":
            pen.ellipse(box, outline=COLORS[color], width=6)
        elif shape == "square":
            pen.rectangle(box, fill=COLORS[color])
        elif shape == "triangle":
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLORS[color])
        else:
            pen.line((x - r, y, x + r, y), fill=COLORS[color], width=8)
            pen.line((x, y - r, x, y + r), fill=COLORS[color], width=8)
        name = f"{n:04d}.png"
        img.save(folder / name)
        rows.append(f'{{"file_name": "{name}", "text": "a {color} {shape}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(rows))


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block that runs."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of a bash block, continued ones joined."""
    return [line for line in re.sub(r" *\\\n *", " ", text).splitlines() if line and not line.startswith("#")]


def run(args: list[str], folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(args, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", SCALE)
def test_every_command_of_a_document_runs(document: str, tmp_path: Path) -> None:
    draw(tmp_path / "my-pictures", 200)
    try:
        small = dict(SCALE[document])
        for language, text in blocks(document):
            if language == "python":
                run([sys.executable, "-c", text], tmp_path)
                continue
            for command in commands(text):
                print(f"$ {command}")
                print(run(["bash", "-euo", "pipefail", "-c", small.pop(command, command)], tmp_path))
        assert not small, f"{document} no longer has {', '.join(small)}"
    finally:
        if (tmp_path / "serve.pid").is_file():  # a server that an example started, and a failure left
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((tmp_path / "serve.pid").read_text()), signal.SIGTERM)
