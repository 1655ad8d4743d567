"""gigagan edit: each edit as files and as a sheet, what files say, one line for a mistake."""

import json
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
from tests.edit.tried import A, B, C, CapSys, D, Run, everything, opened, plain

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


def test_a_sheet_of_too_many_directions_is_refused_before_any_is_found(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gigagan.grid.MAX_PIXELS", 10**6)
    (line,) = run("edit", "directions", A, "--count", "20", "--out", "d.safetensors", code=2)
    assert line.endswith("expected at most 1,000,000 in all; give a smaller --count\n")
    assert everything(tmp_path) == []


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
