"""gigagan video: frames of a file, what it says of itself, one line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan import __version__, cli
from gigagan.pipeline import Pipeline
from tests.edit.tried import A, B, C, CapSys, D, Run, everything, plain


def test_a_video_of_prompts(run: Run, pipe: Pipeline) -> None:
    assert run(
        "video", A, B, "--seeds", "1,2", "--seconds", "0.5", "--fps", "10", "--size", "32", "--out", "v.webp"
    ) == ["v.webp"]
    with Image.open("v.webp") as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]
        for frame, (prompt, seed) in ((0, (A, 1)), (5, (B, 2))):
            image.seek(frame)
            expected = Image.fromarray(plain(pipe, prompt, seed)).resize((32, 32), Image.Resampling.LANCZOS)
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected))


def test_a_loop_through_seeds(run: Run) -> None:
    run("video", A, "--seeds", "0-2", "--loop", "--seconds", "0.4", "--fps", "10", "--out", "v.gif")
    with Image.open("v.gif") as image:
        assert image.size == (64, 64)
        assert image.n_frames == 12  # type: ignore[attr-defined]


def test_a_film_comes_back_to_a_seed(run: Run, pipe: Pipeline) -> None:
    ways = {"seeds": [A, "--seeds", "0,1,0"], "both": [A, B, A, "--seeds", "1,2,1"]}
    for name, keys in ways.items():
        run("video", *keys, "--seconds", "0.2", "--fps", "10", "--size", "16", "--out", f"{name}.webp")
        with Image.open(f"{name}.webp") as image:
            assert image.n_frames == 5  # type: ignore[attr-defined]
            shown = []
            for frame in (0, 2, 4):
                image.seek(frame)
                shown.append(np.asarray(image.convert("RGB")).astype(int))
        assert np.abs(shown[0] - shown[2]).max() <= 1  # the last one is drawn among fewer
        assert np.abs(shown[0] - shown[1]).max() > 1


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_a_film_says_how_to_draw_it_again(run: Run, pipe: Pipeline, capsys: CapSys, kind: str) -> None:
    """Of eight keys, which are more than a block of a GIF's comment holds."""
    keys = [A, B, C, D, "caf\xe9 & <b>", *["a long prompt of many words " * 3] * 3]
    args = ["--seeds", "1-7,1", "--psi", "0.9", "--seconds", "0.2", "--fps", "10", "--loop", "--ease", "linear"]
    run("video", *keys, *args, "--size", "16", "--out", f"v.{kind}")
    assert cli.run(["show", f"v.{kind}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == pipe.model_hash
    assert said["Software"] == f"open-gigagan {__version__}"
    assert said.get("digitalSourceType") == (None if kind == "gif" else "trainedAlgorithmicMedia")
    again = [x for key in ("seeds", "psi", "seconds", "fps", "ease") for x in (f"--{key}", said[key])]
    again += ["--loop"] if said["loop"] == "yes" else []
    run("video", *said["prompts"].splitlines(), *again, "--size", "16", "--out", f"again.{kind}")
    assert Path(f"again.{kind}").read_bytes() == Path(f"v.{kind}").read_bytes()
    run("video", A, "--seeds", "3,4", "--fps", "5", "--size", "16", "--out", f"seeds.{kind}")
    assert cli.run(["show", f"seeds.{kind}"]) == 0
    lines = [f"prompts: {A}", "seeds: 3,4", "psi: 0.7", "seconds: 2.0", "fps: 5.0", "loop: no", "ease: smooth"]
    assert capsys.readouterr().out.splitlines()[:7] == lines


TERMINATED = """
import signal, sys
from gigagan import cli, pipeline
drawn = pipeline.to_pil
def ended(img):
    signal.raise_signal(signal.SIGTERM)
    return drawn(img)
pipeline.to_pil = ended
sys.exit(cli.run(sys.argv[1:]))
"""


def test_sigterm_ends_a_film_as_ctrl_c_does(model: Path, tmp_path: Path) -> None:
    """In a process of its own, which that signal may end."""
    path = tmp_path / "v.webp"
    path.write_bytes(b"before")
    command = [sys.executable, "-c", TERMINATED, "video", A, B, "--fps", "2", "--out", str(path), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert path.read_bytes() == b"before"
    assert everything(tmp_path) == [path]


def test_a_film_over_a_folder_is_refused_before_the_model_is_loaded(tmp_path: Path, capsys: CapSys) -> None:
    folder = tmp_path / "film.gif"
    folder.mkdir()
    assert cli.run(["video", A, B, "--out", str(folder), "--model", str(tmp_path / "no-model")]) == 2
    assert "film.gif: is a folder; give the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["video", A, "--out", "v.mp4"], "1 key frame came"),
        (["video", A, B, C, "--seeds", "1,2", "--out", "v.webp"], "3 prompts and 2 seeds came"),
        (["video", A, B, "--out", "v.avi"], "name ends in"),
        (["video", A, B, "--out", "v.webp", "--seconds", "0"], "0 s at 24 frames a second can't be"),
        (["video", A, "", "--out", "v.webp"], "prompt 2 of 2 is empty"),
        (["video", A, "p.safetensors", "--out", "v.webp"], "here only words can stand"),
        (["video", A, "--seeds", "0-999999", "--seconds", "100", "--out", "v.mp4"], "2,399,997,601 frames are more"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run: Run, tmp_path: Path, args: list[str], message: str) -> None:
    (line,) = run(*args, code=2)
    assert message in line
    assert everything(tmp_path) == []
