"""Enlarged pictures: the mark of invented details, a signature where one is configured, formats by a list."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan import cli
from gigagan.errors import DataError
from gigagan.metadata import COMPOSITE_TYPE, ENHANCED_TYPE, XMP_KEYWORD
from gigagan.upsampling import files
from gigagan.upsampling.formats import PHOTOS, UPLOADS, photo_formats
from gigagan.upsampling.photo import read_photo

CapSys = pytest.CaptureFixture[str]


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (12, 16), dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (12, 16, 4), dtype=np.uint8)).convert(mode)


def shown(path: Path, capsys: CapSys) -> dict[str, str]:
    capsys.readouterr()
    assert cli.run(["show", str(path), "--json"]) == 0
    said: dict[str, str] = json.loads(capsys.readouterr().out)
    return said


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_an_enlarged_picture_and_its_sheet_carry_the_mark(model: Path, tmp_path: Path, capsys: CapSys) -> None:
    (tmp_path / "in").mkdir()
    for mode in ("RGB", "RGBA", "L", "I;16"):
        picture(mode).save(tmp_path / "in" / f"{mode[0]}{len(mode)}.png")
    sheet = tmp_path / "sheet.png"
    command = ["upsample", str(tmp_path / "in"), "--model", str(model), "--scale", "2", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--prompt", "a <red> apple", "--sheet", str(sheet)]) == 0
    made = sorted((tmp_path / "out").glob("*.png"))
    assert len(made) == 4
    for path in made:
        assert f"<Iptc4xmpExt:DigitalSourceType>{ENHANCED_TYPE}<" in opened(path).info[XMP_KEYWORD]
        said = shown(path, capsys)
        assert said["digitalSourceType"] == "compositeWithTrainedAlgorithmicMedia"
        assert (said["prompt"], said["seed"]) == ("a <red> apple", "0")
        assert "signature" not in said
    assert COMPOSITE_TYPE in opened(sheet).info[XMP_KEYWORD]


def test_enlarged_pictures_are_signed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    c2pa = pytest.importorskip("c2pa")
    from tests.certificates import make_certificate

    certificate = make_certificate(tmp_path / "certificate")
    (tmp_path / "in").mkdir()
    for suffix in ("png", "jpg", "webp", "tif", "bmp"):
        picture().save(tmp_path / "in" / f"{suffix}.{suffix}")
    picture("I;16").save(tmp_path / "in" / "deep.png")
    command = ["upsample", str(tmp_path / "in"), "--model", str(model), "--scale", "2", "--out"]
    assert cli.run([*command, str(tmp_path / "plain")]) == 0
    for name, value in certificate.environment.items():
        monkeypatch.setenv(name, value)
    sheet = tmp_path / "sheet.png"
    assert cli.run([*command, str(tmp_path / "out"), "--sheet", str(sheet)]) == 0
    made = sorted((tmp_path / "out").glob("*.png"))
    assert len(made) == 6
    for path in [*made, sheet]:
        said = shown(path, capsys)
        assert said["signature"] == "valid"
        with c2pa.Reader(path) as reader:
            assert reader.get_validation_state() == "Valid"
    for path in made:
        said = shown(path, capsys)
        assert said["actions"] == "c2pa.opened, c2pa.edited compositeWithTrainedAlgorithmicMedia"
        assert said["model"]
        plain = opened(tmp_path / "plain" / path.name)
        assert np.array_equal(np.asarray(opened(path)), np.asarray(plain))
        assert opened(path).mode == plain.mode
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix != ".png"]
    # A signed picture that is enlarged brings its own manifest along.
    again = ["upsample", str(made[0]), "--model", str(model), "--scale", "2", "--out", str(tmp_path / "again")]
    assert cli.run(again) == 0
    with c2pa.Reader(tmp_path / "again" / made[0].name) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 2
    monkeypatch.setattr(files, "MAX_SIGNED_BYTES", 100)
    assert cli.run([*command, str(tmp_path / "large")]) == 2
    assert "can be signed, so ask for less" in capsys.readouterr().err
    assert not list((tmp_path / "large").rglob("*"))


def test_listed_formats_are_read_and_others_are_told_which(tmp_path: Path) -> None:
    assert set(UPLOADS) < set(photo_formats()) <= set(PHOTOS)
    for kind in photo_formats():
        path = tmp_path / kind
        picture().save(path, kind)
        assert read_photo(path).width == 16, kind
    for kind in ("EPS", "TGA", "PCX", "ICO", "SGI", "PDF", "JPEG2000", "DDS"):
        path = tmp_path / f"{kind}.png"
        picture("RGB").save(path, kind)
        with pytest.raises(DataError) as refusal:
            read_photo(path)
        assert "save it as one of PNG, JPEG, WEBP, TIFF, BMP, GIF, PPM" in str(refusal.value), kind
        assert "\n" not in str(refusal.value)


def test_cameras_files_of_two_pictures_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.mpo"
    picture().save(path, "MPO", save_all=True, append_images=[picture()])
    assert read_photo(path).width == 16


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def never(*_: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    buffer = io.BytesIO()
    picture().save(buffer, "EPS")
    path = tmp_path / "x.jpg"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError):
        read_photo(path)
