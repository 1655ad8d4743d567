"""gigagan edit and video: each edit as files and as a sheet, what files say, one line for a mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan import __version__, cli
from gigagan.cli.edit import parse_strengths
from gigagan.editing import Directions, interpolate, mix
from gigagan.editing.point_file import PointFile
from gigagan.errors import ConfigError
from gigagan.metadata import read_info
from gigagan.models.frozen import EfficientNetLite, HashedText
from gigagan.pipeline import Pipeline

CapSys = pytest.CaptureFixture[str]
A, B, C, D = "a red apple", "an icon of a rocket", "x", "y"
Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def model(tiny_networks: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("models") / "model"
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12)).save_pretrained(path)


@pytest.fixture(scope="module")
def pipe(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> Run:
    """Runs a command on the tiny model, returns the lines of its output."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str, code: int = 0) -> list[str]:
        assert cli.run([*args, "--model", str(model)]) == code
        out, err = capsys.readouterr()
        assert code == 0 or len(err.splitlines()) == 1, err
        return out.splitlines() if code == 0 else [err]

    return command


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def plain(pipe: Pipeline, prompt: str, seed: int, psi: float = 0.7) -> np.ndarray:
    return np.asarray(pipe(prompt, seeds=seed, truncation_psi=psi).images[0])


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# What is drawn.


def test_mix_at_its_ends_and_between(run: Run, pipe: Pipeline) -> None:
    paths = run("edit", "mix", A, B, "--layers", "0-3", "--seeds", "4,9", "--psi", "0.9", "--out", "pics")
    assert len(paths) == 8
    for row, seed in ((0, 4), (4, 9)):
        assert np.array_equal(opened(paths[row]), plain(pipe, B, seed, 0.9))
        assert np.array_equal(opened(paths[row + 3]), plain(pipe, A, seed, 0.9))
        points = [pipe.latents([prompt], pipe.z([seed]), 0.9) for prompt in (A, B)]
        expected = pipe.draw(mix(*points, 2))[0][0].permute(1, 2, 0).numpy()
        assert np.array_equal(opened(paths[row + 2]), expected)


def test_style_mixing_has_a_column_a_fine_seed(run: Run, pipe: Pipeline) -> None:
    paths = run("edit", "mix", A, A, "--seeds", "0,1", "--fine-seeds", "1,2", "--layers", "1", "--psi", "1")
    assert len(paths) == 4
    assert np.array_equal(opened(paths[2]), plain(pipe, A, 1, 1.0))
    assert len({opened(path).tobytes() for path in paths}) == 4


def test_interpolate_ends_at_the_plain_pictures(run: Run, pipe: Pipeline) -> None:
    paths = run("edit", "interpolate", A, B, "--seeds", "5", "--steps", "3", "--out", "prompts")
    points = [pipe.latents([prompt], pipe.z([5])) for prompt in (A, B)]
    middle = pipe.draw(interpolate(*points, 0.5))[0][0].permute(1, 2, 0).numpy()
    for path, expected in zip(paths, (plain(pipe, A, 5), middle, plain(pipe, B, 5)), strict=True):
        assert np.array_equal(opened(path), expected)


def test_the_four_ways_between_seeds(run: Run, pipe: Pipeline) -> None:
    between = {}
    for space, default in (("z", "spherical"), ("w", "linear")):
        for way in ("spherical", "linear", ""):
            args = ["edit", "interpolate", A, "--seeds", "0-2,0", "--steps", "4", "--space", space]
            paths = run(*args, *(["--path", way] if way else []), "--out", f"{space}-{way}")
            assert len(paths) == 12  # and back to the first
            ends = [path for n, path in enumerate(paths) if n % 4 in (0, 3)]
            for path, seed in zip(ends, (0, 1, 1, 2, 2, 0), strict=True):
                assert np.array_equal(opened(path), plain(pipe, A, seed))
            between[space, way] = opened(paths[1])
            said = json.loads(read_info(Path(paths[1]))["edit"])
            assert (said["space"], said["path"]) == (space, way or default)
        assert np.array_equal(between[space, ""], between[space, default])
    assert len({picture.tobytes() for picture in between.values()}) == 4
    z = pipe.z([0]) * (2 / 3) + pipe.z([1]) * (1 / 3)
    straight = pipe.draw(pipe.latents([A], z))[0][0].permute(1, 2, 0).numpy()
    assert np.array_equal(between["z", "linear"], straight)
    (plane, *_) = run("edit", "interpolate", A, B, "--steps", "2", "--path", "spherical", "--out", "prompts")
    assert np.array_equal(opened(plane), plain(pipe, A, 0))


def test_grid_has_the_prompts_in_its_corners(run: Run, pipe: Pipeline) -> None:
    paths = run("edit", "grid", A, B, C, D, "--size", "3", "--seeds", "7")
    assert len(paths) == 9
    for place, prompt in zip((0, 2, 6, 8), (A, B, C, D), strict=True):
        assert np.array_equal(opened(paths[place]), plain(pipe, prompt, 7))


def test_arithmetic_adds_a_difference_of_prompts(run: Run, pipe: Pipeline) -> None:
    args = ("--add", B, "--subtract", C, "--strengths", "0,1", "--seeds", "3")
    paths = run("edit", "arithmetic", A, *args)
    assert np.array_equal(opened(paths[0]), plain(pipe, A, 3))
    assert not np.array_equal(opened(paths[1]), plain(pipe, A, 3))
    paths = run("edit", "arithmetic", A, "--add", B, "--subtract", B, "--strengths", "1", "--seeds", "3", "--out", "no")
    assert np.array_equal(opened(paths[0]), plain(pipe, A, 3))


def test_directions_are_found_named_and_used(run: Run, pipe: Pipeline, tmp_path: Path, capsys: CapSys) -> None:
    found = {}
    for method in ("pca", "factors"):
        paths = run("edit", "directions", A, B, "--count", "3", "--method", method, "--out", f"{method}.safetensors")
        assert paths == [f"{method}.safetensors", f"{method}.png"]
        found[method] = Directions.read(Path(paths[0]))
        assert found[method].names == [f"{method}-{n}" for n in range(3)]
        assert found[method].model == pipe.model_hash
    assert cli.run(["edit", "name", "pca.safetensors", "1=rounder"]) == 0
    assert capsys.readouterr().out.splitlines() == ["0: pca-0", "1: rounder", "2: pca-2"]
    Path("foreign.safetensors").write_bytes(replace(found["pca"], names=["a\x1b[31m", "b\nc", "c"]).as_bytes())
    assert cli.run(["edit", "name", "foreign.safetensors", "2=d"]) == 0
    assert capsys.readouterr().out.splitlines() == ["0: a [31m", "1: b c", "2: d"]
    (path,) = run("edit", "arithmetic", A, "--direction", "pca.safetensors", "rounder", "--strengths", "2")
    assert not np.array_equal(opened(path), plain(pipe, A, 0))
    assert json.loads(read_info(Path(path))["edit"])["direction"] == "rounder"
    for names, message in ((["x"], "'x' names no direction"), (["1=a", "1=b"], "got two names"), (["9=a"], "no direc")):
        assert cli.run(["edit", "name", "pca.safetensors", *names]) == 2
        assert message in capsys.readouterr().err
    assert Directions.read(Path("pca.safetensors")).names[1] == "rounder"


def test_a_found_picture_can_be_edited(
    run: Run, pipe: Pipeline, random_lite0: EfficientNetLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gigagan.data.weights.fetch", lambda *args, **kwargs: None)
    monkeypatch.setattr("gigagan.models.frozen.load_efficientnet_lite", lambda *args, **kwargs: random_lite0)
    Image.fromarray(plain(pipe, A, 8, 1.0)).resize((48, 48)).save("mine.jpg")
    paths = run("edit", "project", "mine.jpg", A, "--out", "found.safetensors", "--steps", "20")
    assert paths == ["found.safetensors", "found.png"]
    point = PointFile.read(Path("found.safetensors"))
    assert (point.prompt, point.model) == (A, pipe.model_hash)
    assert read_info(Path("found.png"))["digitalSourceType"] == "compositeSynthetic"
    own = pipe.draw(point.latents(pipe))[0][0].permute(1, 2, 0).numpy()

    coarse = run("edit", "mix", "found.safetensors", B, "--layers", "0,3", "--seeds", "2", "--out", "a")
    assert np.array_equal(opened(coarse[0]), plain(pipe, B, 2))
    assert np.array_equal(opened(coarse[1]), own)
    ends = run("edit", "interpolate", B, "found.safetensors", "--steps", "2", "--out", "b")
    assert np.array_equal(opened(ends[1]), own)
    (unmoved,) = run("edit", "arithmetic", "found.safetensors", "--add", B, "--subtract", C, "--strengths", "0")
    assert np.array_equal(opened(unmoved), own)
    # As what is added: its own styles, not the words of its name.
    args = ("--add", "found.safetensors", "--subtract", B, "--strengths", "1", "--psi", "0", "--out", "c")
    (moved,) = run("edit", "arithmetic", B, *args)
    expected = replace(pipe.latents([B], pipe.z([0]), 0.0), ws=point.latents(pipe).ws)
    assert np.array_equal(opened(moved), pipe.draw(expected)[0][0].permute(1, 2, 0).numpy())
    assert moved.endswith("plus-found-1.png")
    assert json.loads(read_info(Path(moved))["edit"])["add"] == ["found.safetensors"]
    assert json.loads(read_info(Path(unmoved))["edit"])["file"] == "found.safetensors"
    (line,) = run("edit", "arithmetic", "found.safetensors", "--add", B, "--subtract", C, "--seeds", "1", code=2)
    assert "--seeds came, but every picture comes from a file" in line
    (line,) = run("edit", "interpolate", "found.safetensors", "--seeds", "0-1", code=2)
    assert line.startswith("gigagan: --seeds came") or "holds one picture" in line


def test_a_prompt_that_is_cut_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys, random_lite0: EfficientNetLite
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gigagan.data.weights.fetch", lambda *args, **kwargs: None)
    monkeypatch.setattr("gigagan.models.frozen.load_efficientnet_lite", lambda *args, **kwargs: random_lite0)
    Image.new("RGB", (16, 16)).save("mine.png")
    long = "very " * 20 + "long"
    for args in (
        ["arithmetic", A, "--add", long, "--subtract", B, "--strengths", "0"],
        ["arithmetic", A, "--add", B, "--subtract", long, "--strengths", "0"],
        ["directions", A, long, "--count", "1", "--out", "d.safetensors"],
        ["project", "mine.png", long, "--steps", "1", "--out", "p.safetensors"],
    ):
        assert cli.run(["edit", *args, "--model", str(model)]) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "the text encoder takes 12" in line]
        assert len(told) == 1, args


# What files say.


def test_a_file_says_what_was_done(run: Run, pipe: Pipeline, capsys: CapSys) -> None:
    (path,) = run("edit", "mix", A, 'the "\u2603"', "--layers", "2", "--seeds", "6", "--psi", "0.8")
    said = read_info(Path(path))
    assert (said["prompt"], said["seed"], said["psi"], said["model"]) == (A, "6", "0.8", pipe.model_hash)
    assert json.loads(said["edit"]) == {"edit": "mix", "fine": 'the "\u2603"', "fine_seed": 6, "layer": 2}
    assert said["digitalSourceType"] == "trainedAlgorithmicMedia"
    (again,) = run("edit", "mix", A, 'the "\u2603"', "--layers", "2", "--seeds", "6", "--psi", "0.8")
    assert again == path
    assert "edit" not in read_info(Path(run("generate", A, "--seeds", "0")[0]))


def test_show_of_a_sheet(run: Run, pipe: Pipeline, capsys: CapSys) -> None:
    run("generate", A, B, "--seeds", "0-1", "--psi", "0.5", "--grid", "plain.png")
    assert cli.run(["show", "plain.png"]) == 0
    lines = [f"prompts: {A}", f"prompts: {B}", "seeds: 0,1", "psi: 0.5", f"model: {pipe.model_hash}"]
    lines += [f"Software: open-gigagan {__version__}", "digitalSourceType: trainedAlgorithmicMedia"]
    assert capsys.readouterr().out.splitlines() == lines
    run("edit", "mix", A, B, "--layers", "1-2", "--grid", "mixed.png")
    assert cli.run(["show", "mixed.png", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["seeds"]) == (A, "0")
    assert [json.loads(edit)["layer"] for edit in said["edits"].splitlines()] == [1, 2]


def test_a_sheet_replaces_itself_and_writes_nothing_else(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("edit", "mix", A, B, "--layers", "0-3", "--grid", "new/sheet.png") == ["new/sheet.png"]
    assert everything(tmp_path) == [tmp_path / "new" / "sheet.png"]


# Videos.


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


def test_a_sheet_of_too_many_directions_is_refused_before_any_is_found(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gigagan.grid.MAX_PIXELS", 10**6)
    (line,) = run("edit", "directions", A, "--count", "20", "--out", "d.safetensors", code=2)
    assert line.endswith("expected at most 1,000,000 in all; give a smaller --count\n")
    assert everything(tmp_path) == []


def test_a_film_over_a_folder_is_refused_before_the_model_is_loaded(tmp_path: Path, capsys: CapSys) -> None:
    folder = tmp_path / "film.gif"
    folder.mkdir()
    assert cli.run(["video", A, B, "--out", str(folder), "--model", str(tmp_path / "no-model")]) == 2
    assert "film.gif: is a folder; give the name of a file" in capsys.readouterr().err


# Mistakes.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["edit", "mix", A, B, "--layers", "4"], "layer 4 can't be; expected 0 (all fine) to 3 (all coarse)"),
        (["edit", "mix", A, B, "--layers", "x"], "--layers x: 'x' isn't a layer"),
        (["edit", "mix", A, B, "--layers", "0-1", "--fine-seeds", "0"], "give one layer with it"),
        (["edit", "mix", A, " "], "the prompt is empty"),
        (["edit", "mix", A, "missing.safetensors"], "missing.safetensors"),
        (["edit", "interpolate", A], "one prompt and one seed came"),
        (["edit", "interpolate", A, B, "--space", "w"], "--space is for the way between seeds"),
        (["edit", "mix", A, B, "--grid", "a.png", "--out", "o"], "--grid writes one sheet and --out picture files"),
        (["edit", "interpolate", A, B, "--psi", "2"], "psi is 2.0"),
        (["edit", "grid", A, B, C, D, "--seeds", "0-1"], "a plane is of one seed"),
        (["edit", "arithmetic", A], "give --add with --subtract, or --direction"),
        (["edit", "arithmetic", A, "--add", B], "1 --add and 0 --subtract came"),
        (["edit", "arithmetic", A, "--add", B, "--subtract", C, "--strengths", "1,,2"], "'' isn't a number"),
        (["edit", "arithmetic", A, "--add", B, "--subtract", C, "--strengths", "1" * 39], "expected -1000 to 1000"),
        (["edit", "mix", A, A, "--seeds", "0-99", "--fine-seeds", "0-99", "--grid", "g.png"], "13,836 x 13,658 px"),
        (["edit", "directions", A, "p.safetensors", "--out", "d.safetensors"], "here only words can stand"),
        (["edit", "directions", A, "--out", "d.txt"], "d.txt: give a name that ends in .safetensors"),
        (["edit", "directions", A, "--count", "33", "--out", "d.safetensors"], "w has 32 dimensions"),
        (["edit", "project", "nothing.png", A, "--out", "d.safetensors"], "nothing.png"),
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


@pytest.mark.parametrize(
    ("args", "there"),
    [
        (["project", "photo.png", A, "--out", "photo.safetensors"], "photo.png"),  # whose sheet it would be
        (["directions", A, "--out", "mine.safetensors"], "mine.safetensors"),
        (["directions", A, "--out", "mine.safetensors"], "mine.png"),
    ],
)
def test_what_is_found_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys, args: list[str], there: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).write_bytes(b"somebody's")
    assert cli.run(["edit", *args, "--model", "no-such-model"]) == 2  # told before a model is looked for
    assert capsys.readouterr().err == f"gigagan: {there}: exists; give another --out\n"
    assert everything(tmp_path) == [tmp_path / there]
    assert (tmp_path / there).read_bytes() == b"somebody's"


def test_a_file_of_another_model_is_refused(
    run: Run,
    tiny_networks: Callable,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    other = Pipeline(tiny_networks(1)[0], HashedText(max_tokens=12)).save_pretrained(tmp_path / "other")
    assert cli.run(["edit", "directions", A, "--count", "2", "--out", "d.safetensors", "--model", str(other)]) == 0
    (line,) = run("edit", "arithmetic", A, "--direction", "d.safetensors", "pca-0", code=2)
    assert "d.safetensors: belongs to model" in line


def test_a_damaged_picture_is_one_line(run: Run, tmp_path: Path) -> None:
    (line,) = run("edit", "project", "mine.png", "p.safetensors", "--out", "found.safetensors", code=2)
    assert "mine.png" in line
    (tmp_path / "mine.png").write_bytes(b"\x89PNG\r\n")
    (line,) = run("edit", "project", "mine.png", "p.safetensors", "--out", "found.safetensors", code=2)
    assert "here only words can stand" in line
    (line,) = run("edit", "project", "mine.png", A, "--out", "found.safetensors", code=2)
    assert "mine.png: isn't a whole PNG, JPEG or WebP picture" in line
    assert everything(tmp_path) == [tmp_path / "mine.png"]


def test_strengths() -> None:
    assert parse_strengths("-1, 0,+0.5,.25,0") == [-1, 0, 0.5, 0.25]
    for text in ("", "1,,2", "nan", "1e400", "a"):
        with pytest.raises(ConfigError, match=r"isn't a number; write -1,0,0\.5"):
            parse_strengths(text)
    for text in ("1000.5", "-1001", "9" * 400):
        with pytest.raises(ConfigError, match="expected -1000 to 1000"):
            parse_strengths(text)
