"""gigagan generate and show: files that say how to draw them again, one line for a mistake, nothing half written."""

import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from gigagan import cli
from gigagan.cli.files import save_new, slug
from gigagan.cli.generate import parse_seeds
from gigagan.errors import ConfigError, DataError
from gigagan.grid import MAX_PIXELS, captioned_sheet, captioned_size, check_size, grid_size, labelled_grid
from gigagan.metadata import SOURCE_TYPE, PictureInfo, lossy_bytes, png_bytes, read_info
from gigagan.models.frozen import HashedText
from gigagan.pipeline import Pipeline

CapSys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tiny_networks: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("models") / "model"
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12)).save_pretrained(path)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> Callable[..., list[str]]:
    """Runs `gigagan generate`, returns the lines of its output."""
    monkeypatch.chdir(tmp_path)

    def generate(*args: str, code: int = 0) -> list[str]:
        assert cli.run(["generate", "--model", str(model), *args]) == code
        out, err = capsys.readouterr()
        assert code == 0 or len(err.splitlines()) == 1, err
        return out.splitlines() if code == 0 else [err]

    return generate


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def opened(path: Path | str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


# Files.


def test_each_prompt_with_each_seed(run: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\ufeffThe third, of more!\n\n  x  \n", encoding="utf-8")
    told = run("a red apple", "x", "--prompts", "more.txt", "--seeds", "0,2-3", "--out", "some/where")
    assert told == [
        f"some/where/{name}-{seed}.png" for name in ("a-red-apple", "x", "the-third-of-more") for seed in (0, 2, 3)
    ]
    assert files(tmp_path / "some" / "where") == sorted(Path(path).name for path in told)


def test_a_file_says_how_to_draw_it_again(
    run: Callable[..., list[str]], model: Path, tmp_path: Path, capsys: CapSys
) -> None:
    prompt = 'snowman "\u2603", 3 < 4 & so\non'
    (path,) = map(Path, run(prompt, "--seeds", "9223372036854775807", "--psi", "0.35"))
    assert cli.run(["show", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["prompt"] == prompt
    assert said["digitalSourceType"] == "trainedAlgorithmicMedia"
    pipe = Pipeline.from_pretrained(model, device=said["device"], dtype=said["dtype"])
    assert (said["model"], said["resolution"]) == (pipe.model_hash, "16")
    image = pipe(said["prompt"], seeds=int(said["seed"]), truncation_psi=float(said["psi"])).images[0]
    assert np.array_equal(np.asarray(image), np.asarray(opened(path)))
    again = png_bytes(image, pipe.info(said["prompt"], int(said["seed"]), float(said["psi"]), image.width))
    assert again == path.read_bytes()

    assert cli.run(["show", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert 'prompt: snowman "\u2603", 3 < 4 & so on' in shown
    assert "psi: 0.35" in shown


def test_without_seeds_one_is_drawn_and_named(run: Callable[..., list[str]]) -> None:
    (path,) = run("x")
    assert read_info(Path(path))["seed"] == Path(path).stem.removeprefix("x-")


def test_no_picture_is_lost(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("x", "--seeds", "0") == run("x", "--seeds", "0") == ["out/x-0.png"]
    first = Path("out/x-0.png").read_bytes()
    assert run("x", "--seeds", "0", "--psi", "1") == ["out/x-0-1.png"]
    assert run("X!", "--seeds", "0") == ["out/x-0-2.png"]
    assert run("x", "--seeds", "0", "--psi", "1") == ["out/x-0-1.png"]
    assert Path("out/x-0.png").read_bytes() == first
    assert len(files(tmp_path / "out")) == 3


def test_a_name_that_another_run_took_first_is_left_to_it(tmp_path: Path) -> None:
    """Between the look at the folder and the writing."""

    def sign(content: bytes) -> bytes:
        if not (tmp_path / "x.png").exists():
            (tmp_path / "x.png").write_bytes(b"another's")
        return content

    assert save_new(tmp_path, "x", b"mine", sign) == tmp_path / "x-1.png"
    assert save_new(tmp_path, "x", b"mine", lambda content: b"mine, signed") == tmp_path / "x-1.png"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "x.png": b"another's",
        "x-1.png": b"mine, signed",
    }


def test_levels(run: Callable[..., list[str]]) -> None:
    told = run("x", "--seeds", "5", "--levels")
    assert told == ["out/x-5.png", "out/x-5-8px.png", "out/x-5-4px.png"]
    assert [opened(path).width for path in told] == [16, 8, 4]
    assert [read_info(Path(path))["resolution"] for path in told] == ["16", "8", "4"]


def test_a_cut_prompt_is_said_on_stderr(model: Path, tmp_path: Path, capsys: CapSys) -> None:
    long = " ".join(["word"] * 20)
    assert cli.run(["generate", "--model", str(model), "--out", str(tmp_path), "--seeds", "0-1", long]) == 0
    err = capsys.readouterr().err
    assert err.count("22 tokens, the text encoder takes 12") == 1


# Sheets.


def test_a_sheet_and_no_files(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("x", "y", "--seeds", "0-2", "--grid", "new/sheet.png") == ["new/sheet.png"]
    assert files(tmp_path) == ["new", "new/sheet.png"]
    many = opened("new/sheet.png")
    assert "trainedAlgorithmicMedia" in many.info["XML:com.adobe.xmp"]
    run("x", "y", "--seeds", "0", "--grid", "new/sheet.png", "--enlarge", "nearest")
    assert opened("new/sheet.png").size != many.size


def test_a_sheet_shows_the_pictures_in_their_places() -> None:
    colors = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)], [(0, 200, 200), (9, 9, 9)]]
    images = [[Image.new("RGB", (64, 64), color) for color in row] for row in colors]
    labels = ["short", "a very long label " * 30, "W" * 300]
    sheet = labelled_grid(images, labels, ["seed 0", "9" * 50])
    found = {color for _, color in sheet.getcolors(2**24) or []}
    assert {color for row in colors for color in row} <= found
    left = [sheet.getpixel((sheet.width - 250, y)) for y in range(sheet.height)]
    right = [sheet.getpixel((sheet.width - 50, y)) for y in range(sheet.height)]
    for column, line in ((0, left), (1, right)):
        places = [line.index(row[column]) for row in colors]
        assert places == sorted(places)
    assert len({color for color in found if color[0] == color[1] == color[2]}) > 3, "no text"


@pytest.mark.parametrize("count", [1, 2, 7, 11, 36])
def test_a_captioned_sheet_holds_every_picture(count: int) -> None:
    images = [Image.new("RGB", (16, 16), (250, 10, 5 + i)) for i in range(count)]
    sheet = captioned_sheet(images, [f"caption {i}" for i in range(count)])
    found = {color: n for n, color in sheet.getcolors(2**24) or []}
    assert all(found[250, 10, 5 + i] == 128 * 128 for i in range(count))


@pytest.mark.parametrize("side", [16, 300, 512])
def test_the_size_of_a_sheet_is_known_before_its_pictures(side: int) -> None:
    image = Image.new("RGB", (side, side))
    assert labelled_grid([[image] * 3] * 2, ["a"] * 2, ["b"] * 3).size == grid_size(2, 3, side)
    for count in (1, 8, 13):
        assert captioned_sheet([image] * count, ["a"] * count).size == captioned_size(count, side)
    check_size((8000, 8000))
    with pytest.raises(
        ConfigError, match=r"the sheet would have 10,000 x 9,000 px, expected at most 89,478,485 in all"
    ):
        check_size((10_000, 9000))


def test_labels_beyond_ascii_are_drawn() -> None:
    image = Image.new("RGB", (128, 128))
    assert labelled_grid([[image]], ["groß \u732b"], ["\u00e4"]).width > 128


# Mistakes.


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "no prompt came"),
        ([""], "the prompt is empty"),
        (["x", " "], "prompt 2 of 2 is empty"),
        (["x", "--grid", "a.png", "--out", "o"], "--grid writes one sheet and --out picture files"),
        (["x", "--enlarge", "nearest"], "--enlarge is how a sheet shows small pictures"),
        (["x", "--psi", "1.5"], "psi is 1.5"),
        (["x", "--psi", "much"], "--psi"),
        (["x", "--seeds", "1-"], "isn't a seed"),
        (["x", "--seeds", ""], "isn't a seed"),
        (["x", "--seeds", "-1"], "isn't a seed"),
        (["x", "--seeds", "5-2"], "runs backward; write 2-5"),
        (["x", "--seeds", "9223372036854775808"], "a seed is at most"),
        (["x", "--seeds", "0-99999999999"], "more than 1,000,000"),
        (["x", "--seeds", "9" * 5000], "a seed is at most"),
        (["x", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["x", "--prompts", "empty.txt"], "holds no prompt"),
        (["x", "--prompts", "latin.txt"], "isn't UTF-8"),
        (["x", "--grid", "sheet.jpg"], "ends in .png"),
        (["x", "--grid", "folder.png"], "is a folder"),
        (["x", "--grid", "s.png", "--levels"], "give one of them"),
        (["x", "--out", "empty.txt"], "is a file"),
        (["x", "--out", "empty.txt/below"], "can't be written"),
        (["x", "--device", "quantum"], "device 'quantum'"),
        (["x", "--dtype", "float16"], "float16"),
        (["x", "--model", "nowhere"], "no such model directory"),
        (["x", "--modle", "y"], "--model"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    run: Callable[..., list[str]], tmp_path: Path, args: list[str], told: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder.png").mkdir()
    before = files(tmp_path)
    (message,) = run(*args, code=2)
    assert told in message
    assert files(tmp_path) == before


def test_a_place_that_refuses_is_found_before_drawing(
    run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*args: object, **kwargs: object) -> None:
        raise AssertionError("drew first")

    monkeypatch.setattr(Pipeline, "__call__", drawn)
    (message,) = run("x", "--out", "/proc/nowhere", code=2)
    assert "/proc" in message


def test_a_full_disk_leaves_nothing(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for failing in (["fsync"], ["link", "rename"]):  # the content, or the name, finds no room
        with monkeypatch.context() as patch:
            for call in failing:
                patch.setattr(os, call, full)
            (message,) = run("x", "--seeds", "0", code=2)
        assert "No space left" in message
        assert files(tmp_path) == ["out"]


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_show_of_another_file_is_one_line(tmp_path: Path, content: bytes | None, capsys: CapSys) -> None:
    path = tmp_path / "other.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_bytes(content)
    assert cli.run(["show", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    with pytest.raises(DataError):
        read_info(path)
    assert cli.run(["show", str(tmp_path / "nowhere.png")]) == 2
    assert cli.run(["show", str(tmp_path)]) == 2


def test_show_of_a_cut_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = png_bytes(Image.fromarray(noise), PictureInfo("x", 0, 1.0, "m"))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="isn't a whole picture"):
        read_info(path)


def test_a_large_picture_is_read_without_a_warning_and_a_larger_one_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS <= Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(Image.new("RGB", (14, 14)), PictureInfo("x", 0, 1.0, "m")))
    assert read_info(path)["prompt"] == "x"
    path.write_bytes(png_bytes(Image.new("RGB", (15, 15)), PictureInfo("x", 0, 1.0, "m")))
    with pytest.raises(DataError, match=r"x\.png: too large: Image size \(225 pixels\) exceeds limit of 200 pixels$"):
        read_info(path)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_jpeg_and_webp_say_the_same_as_png(kind: Literal["jpeg", "webp"], tmp_path: Path) -> None:
    info = PictureInfo("caf\xe9 <b> & \U0001f34e ]]>", 2**63 - 1, 0.7, "abc", edit='{"edit": "mix"}')
    image = Image.new("RGB", (8, 8), "red")
    path, png = tmp_path / f"x.{kind}", tmp_path / "x.png"
    path.write_bytes(lossy_bytes(image, info, kind, 90))
    png.write_bytes(png_bytes(image, info))
    assert read_info(path) == read_info(png)
    with Image.open(path) as found:
        assert xml.etree.ElementTree.fromstring(found.info["xmp"].decode().strip()) is not None


def test_a_prompt_too_long_for_a_jpeg_leaves_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.jpeg"
    path.write_bytes(lossy_bytes(Image.new("RGB", (8, 8)), PictureInfo("\U0001f34e" * 32_000, 0, 1.0, "m"), "jpeg", 90))
    assert SOURCE_TYPE.encode() in path.read_bytes()
    with pytest.raises(DataError, match="says nothing"):
        read_info(path)


@pytest.mark.parametrize("said", ["", "[1]", "{", "[" * 100_000, '{"prompt": 1, "seed": []}'])
def test_a_jpeg_of_others_is_one_line(said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    packet = f"<gigagan:drawing>{said}</gigagan:drawing>".encode()
    Image.new("RGB", (8, 8)).save(path, "WEBP", xmp=packet)
    with pytest.raises(DataError, match="says nothing"):
        read_info(path)


def test_show_cannot_steer_the_terminal(tmp_path: Path, capsys: CapSys) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(Image.new("RGB", (4, 4)), PictureInfo("red \x1b[31m\nseed: 7", 0, 1.0, "m")))
    assert cli.run(["show", str(path)]) == 0
    assert "prompt: red  [31m seed: 7" in capsys.readouterr().out


# Parts.


def test_seeds() -> None:
    assert parse_seeds("7") == [7]
    assert parse_seeds(" 0, 1,4 - 6,5,0") == [0, 1, 4, 5, 6]
    assert parse_seeds("0009-0010") == [9, 10]
    assert parse_seeds("1,0-1,1", again=True) == [1, 0, 1, 1]
    for text in ("a", "1.5", "1--2", "\u0663", "1,,2", "--"):
        with pytest.raises(ConfigError, match="isn't a seed"):
            parse_seeds(text)


def test_slugs() -> None:
    assert slug("A 3D render of: a red_apple!") == "a-3d-render-of-a-red-apple"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("\U0001f34e") == "picture"
    assert slug("\u732b" * 100).encode() <= ("\u732b" * 27).encode()
    assert "\ufffd" not in slug("\u00e9" * 100)
    assert len(slug("word " * 100)) <= 80
