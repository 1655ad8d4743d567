"""Photographs of every kind: either right to the pixel's place, or refused in one line."""

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gigagan import cli
from gigagan.errors import DataError
from gigagan.upsampling import photo as module
from gigagan.upsampling.enlarger import Enlarger, Request
from gigagan.upsampling.photo import as_photo, read_photo, upsampled_picture
from gigagan.upsampling.png import write_png
from gigagan.upsampling.resize import fitted
from gigagan.upsampling.size import size_of


def check(enlarger: Enlarger, odd: Any, out: Path) -> None:
    if odd.refused:
        with pytest.raises(DataError) as refusal:
            read_photo(odd.path)
        assert str(refusal.value).startswith(str(odd.path))
        assert "\n" not in str(refusal.value)
        return
    photo = read_photo(odd.path)
    larger = size_of(photo.width, photo.height, scale=2)
    with out.open("wb") as file:
        module.write_photo(file, enlarger, photo, larger, Request(), {})
    with Image.open(out) as made:
        made.load()
        assert made.size == (odd.size[0] * 2, odd.size[1] * 2), odd
        assert made.mode == odd.mode, odd
        assert made.info.get("icc_profile", b"") == odd.icc
        assert 0x0112 not in made.getexif()


def test_a_hundred_odd_pictures(enlarger: Enlarger, odd_picture: Callable[[Path, int], Any], tmp_path: Path) -> None:
    for number in range(120):
        check(enlarger, odd_picture(tmp_path, number), tmp_path / "out.png")


@pytest.mark.slow
def test_a_thousand_odd_pictures(enlarger: Enlarger, odd_picture: Callable[[Path, int], Any], tmp_path: Path) -> None:
    for number in range(1000):
        check(enlarger, odd_picture(tmp_path, number), tmp_path / "out.png")


@pytest.fixture
def faithful(enlarger: Enlarger, monkeypatch: pytest.MonkeyPatch) -> Enlarger:
    """One whose network adds nothing: the result is the picture through the FIR filter, so values can be compared."""
    from copy import deepcopy

    network = deepcopy(enlarger.upsampler)
    for level in network.synthesis.levels.values():
        if getattr(level, "to_rgb", None) is not None:
            level.to_rgb.bank.zero_()
            level.to_rgb.bias.zero_()
    return Enlarger(network, enlarger.text_encoder)


def test_values_come_through_in_every_mode(faithful: Enlarger) -> None:
    colors: dict[str, Any] = {"RGB": (200, 30, 90), "L": 77, "RGBA": (200, 30, 90, 128), "LA": (9, 250)}
    for mode, color in (colors | {"CMYK": (0, 0, 0, 0)}).items():
        image = Image.new(mode, (9, 5), color)
        made = upsampled_picture(faithful, as_photo(image), 4, 0, Request())
        expected = color if mode != "CMYK" else (255, 255, 255)
        assert made.size == (36, 20)
        assert set(made.get_flattened_data()) == {expected}, mode


def test_sixteen_bits_stay_sixteen(faithful: Enlarger) -> None:
    ramp = np.linspace(1000, 60000, 40).astype(np.uint16)[None].repeat(12, axis=0)
    made = np.asarray(upsampled_picture(faithful, as_photo(Image.fromarray(ramp)), 2, 0, Request()))
    assert made.dtype == np.uint16
    assert len(np.unique(made)) > 75
    assert np.abs(made.astype(int)[::2, ::2] - ramp).max() < 500


def test_orientation_is_followed(faithful: Enlarger, tmp_path: Path) -> None:
    """The corner that is up and left for a viewer stays there, in all eight orientations."""
    for orientation in range(1, 9):
        upright = np.zeros((16, 24, 3), np.uint8)
        upright[:8, :8] = (255, 0, 0)
        inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
        stored = Image.fromarray(upright)
        if inverse is not None:
            stored = stored.transpose(Image.Transpose(inverse))
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = orientation, "a description"
        stored.save(tmp_path / "a.png", exif=exif)
        made = upsampled_picture(faithful, read_photo(tmp_path / "a.png"), 2, 0, Request())
        assert made.size == (48, 32)
        assert made.getpixel((4, 4)) == (255, 0, 0), orientation
        assert made.getpixel((44, 28)) == (0, 0, 0), orientation


def test_colors_under_alpha_do_not_bleed(faithful: Enlarger) -> None:
    """Transparent black beside opaque white makes no gray edge."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = 255
    made = np.asarray(upsampled_picture(faithful, as_photo(Image.fromarray(pixels)), 4, 0, Request()))
    visible = made[made[..., 3] > 0]
    assert visible[:, :3].min() >= 254
    assert made[:, :24, 3].min() == 255
    assert made[:, 40:, 3].max() == 0


def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(DataError, match="12000 x 12000 px is too large; at most 128 megapixels"):
        read_photo(tmp_path / "bomb.png")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((512, 512), 4096, (8, 4096, 4096)), ((500, 300), 1000, (2, 1000, 600)), ((10, 99), 200, (4, 20, 200))],
)
def test_a_longer_side_of_so_many_pixels(size: tuple[int, int], longest: int, expected: tuple[int, int, int]) -> None:
    made = size_of(*size, longest=longest)
    assert (made.scale, made.width, made.height) == expected


def test_a_picture_as_large_already_is_told() -> None:
    with pytest.raises(DataError, match="600 x 400 px already; a longer side of 600 px isn't larger"):
        size_of(600, 400, longest=600)


def test_rows_are_brought_to_size_as_pillow_does_the_whole() -> None:
    rng = np.random.default_rng(0)
    whole = rng.random((601, 47, 2), dtype=np.float32)
    bands = (whole[start : start + 37] for start in range(0, 601, 37))
    made = np.concatenate(list(fitted(bands, (47, 601), (31, 423))))
    for channel in range(2):
        expected = Image.fromarray(whole[:, :, channel]).resize((31, 423), Image.Resampling.LANCZOS)
        np.testing.assert_allclose(made[:, :, channel], np.asarray(expected), atol=1e-4)


def test_png_of_bands_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels, bits, mode in ((1, 8, "L"), (2, 8, "LA"), (3, 8, "RGB"), (4, 8, "RGBA"), (1, 16, "I;16")):
        pixels = rng.integers(0, 2**bits, (50, 13, channels)).astype(np.uint16 if bits == 16 else np.uint8)
        buffer = io.BytesIO()
        bands = (pixels[start : start + 7] for start in range(0, 50, 7))
        write_png(buffer, bands, size=(13, 50), channels=channels, bits=bits)
        with Image.open(buffer) as made:
            assert made.mode == mode
            assert np.array_equal(np.asarray(made).reshape(50, 13, channels), pixels)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )


def test_a_folder_goes_on_and_nothing_is_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "sub").mkdir()
    Image.new("L", (9, 9), 7).save(tmp_path / "in" / "sub" / "0.jpg")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.png").write_bytes(b"mine")
    command = ["upsample", str(tmp_path / "in"), "--model", str(model), "--scale", "2", "--out", str(out)]
    assert cli.run([*command, "--sheet", str(tmp_path / "sheet.png")]) == 2  # for the bad one
    said = capsys.readouterr()
    assert "bad.png: isn't a picture" in said.err
    assert f"{out / '1.png'}: is there already and isn't {tmp_path / 'in' / '1.png'} at 40 x 48 px" in said.err
    assert "2 of 5 pictures were left out" in said.err
    assert "about" in said.err
    assert "was trained on drawings; others may come out worse" in said.err
    assert (out / "1.png").read_bytes() == b"mine"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == ["0.png", "1.png", "2.png", "sub/0.png"]
    assert size(out / "0.png") == (40, 48)
    assert size(tmp_path / "sheet.png")[0] > 100
    before = (out / "0.png").stat().st_mtime_ns
    (tmp_path / "sheet.png").unlink()
    assert cli.run([*command, "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "3 of 5 pictures are in" in capsys.readouterr().err
    assert (out / "0.png").stat().st_mtime_ns == before
    assert size(tmp_path / "sheet.png")[0] > 100  # of what was there


@pytest.mark.slow
def test_killing_a_folder_run_leaves_whole_files_and_a_rerun_finishes(model: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 12)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "gigagan",
        "upsample",
        str(tmp_path / "in"),
        "--model",
        str(model),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = list(out.glob("*.png"))
    assert 3 <= len(left) < 12
    for path in left:
        assert size(path) == (80, 96)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert len(list(out.glob("*.png"))) == 12
    assert all(size(path) == (80, 96) for path in out.glob("*.png"))
