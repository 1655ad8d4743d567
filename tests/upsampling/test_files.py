"""Which files `gigagan upsample` writes, and which it leaves alone."""

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan import cli
from gigagan.cli import upsample
from gigagan.upsampling.files import Job

CapSys = pytest.CaptureFixture[str]


def picture(path: Path, size: tuple[int, int] = (12, 8), color: int = 90) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (color, 40, 200)).save(path)
    return path


def refused(capsys: CapSys, *args: str | Path) -> str:
    """The one line of a refusal that comes before a model is looked for."""
    assert cli.run(["upsample", "--model", "no-such-model", *map(str, args)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("sheet", ["owl.png", "large/owl.png", "link.png"])
def test_a_sheet_takes_no_pictures_place(tmp_path: Path, capsys: CapSys, sheet: str) -> None:
    source = picture(tmp_path / "owl.png")
    (tmp_path / "link.png").symlink_to(source)
    before = source.read_bytes()
    args = source, "--scale", "2", "--out", tmp_path / "large", "--sheet", tmp_path / sheet
    assert "is one of the pictures; give --sheet another name" in refused(capsys, *args)
    assert source.read_bytes() == before
    assert not (tmp_path / "large").exists()


def test_a_picture_is_not_its_own_result(tmp_path: Path, capsys: CapSys) -> None:
    source = picture(tmp_path / "owl.png")
    assert "is a picture to be made larger itself; give another --out" in refused(capsys, source, "--out", tmp_path)


def test_a_seed_beyond_the_largest_is_one_line(tmp_path: Path, capsys: CapSys) -> None:
    source = picture(tmp_path / "owl.png")
    line = refused(capsys, source, "--out", tmp_path / "large", "--seed", "99999999999999999999")
    assert "seed 99999999999999999999 can't be; expected a whole number from 0 to" in line


def test_a_file_of_another_size_is_told_and_the_others_are_done(model: Path, tmp_path: Path, capsys: CapSys) -> None:
    a, b, c = (
        picture(tmp_path / name, size) for name, size in (("a/f.png", (12, 8)), ("b/f.png", (9, 9)), ("c.png", (5, 5)))
    )
    out = tmp_path / "large"
    command = ["upsample", "--model", str(model), "--out", str(out)]
    assert cli.run([*command, "--scale", "2", str(a)]) == 0
    first = (out / "f.png").read_bytes()
    assert cli.run([*command, "--scale", "2", str(a)]) == 0
    assert "1 of 1 pictures are in" in capsys.readouterr().err
    for source, scale, wanted in ((a, "4", "48 x 32"), (b, "2", "18 x 18")):
        assert cli.run([*command, "--scale", scale, str(source), str(c)]) == 2
        out_, err = capsys.readouterr()
        assert f"{out / 'f.png'}: is there already and isn't {source} at {wanted} px; it stays, so give another" in err
        assert "already\n" not in err
        assert out_.splitlines() == [str(out / "c.png")]
        (out / "c.png").unlink()
    assert (out / "f.png").read_bytes() == first


def test_a_picture_on_its_side_is_known_again(model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=exif)
    command = [
        "upsample",
        "--model",
        str(model),
        "--out",
        str(tmp_path / "large"),
        "--to",
        "40",
        str(tmp_path / "a.jpg"),
    ]
    assert cli.run(command) == 0
    with Image.open(tmp_path / "large" / "a.png") as made:
        assert made.size == (27, 40)
    assert cli.run(command) == 0


def test_without_hard_links_pictures_are_kept_and_none_is_replaced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    def link(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    source, target = picture(tmp_path / "owl.png"), tmp_path / "large" / "owl.png"
    command = ["upsample", "--model", str(model), "--out", str(target.parent), "--scale", "2", str(source)]
    assert cli.run(command) == 0
    assert [path.name for path in target.parent.iterdir()] == ["owl.png"]
    target.unlink()

    def appears(*args: object) -> None:
        target.write_bytes(b"somebody's")
        link()

    monkeypatch.setattr(os, "link", appears)
    assert cli.run(command) == 2
    assert "appeared meanwhile; it stays" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"owl.png": b"somebody's"}


def test_sixteen_bits_are_gray_on_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "small.png", tmp_path / "large.png"
    for path, side in ((source, 32), (target, 64)):
        Image.fromarray(np.full((side, side), 100 << 8, np.uint16)).save(path)
    shown = []
    real = upsample._on_square

    def on_square(image: Image.Image, side: int) -> Image.Image:
        shown.append(image.getpixel((9, 9)))
        return real(image, side)

    monkeypatch.setattr(upsample, "_on_square", on_square)
    upsample._sheet(tmp_path / "sheet.png", [Job(source, target)], {"model": "abc"}, None)
    assert shown == [(100, 100, 100)] * 2


def test_a_picture_too_large_to_be_shown_is_named(tmp_path: Path, capsys: CapSys) -> None:
    target = tmp_path / "large.png"
    target.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 20_000, 20_000))
    upsample._sheet(tmp_path / "sheet.png", [Job(tmp_path / "small.png", target)], {"model": "abc"}, None)
    assert "large.png: isn't on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [target]
