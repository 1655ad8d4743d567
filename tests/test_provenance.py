"""Signed pictures: c2pa's own reader verifies them, nothing of ours is lost."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

c2pa = pytest.importorskip("c2pa")

from cryptography.hazmat.primitives.serialization import PrivateFormat  # noqa: E402

from gigagan import __version__, cli  # noqa: E402
from gigagan.metadata import ENHANCED_TYPE, SOURCE_TYPE, PictureInfo, lossy_bytes, png_bytes, read_info  # noqa: E402
from gigagan.models.frozen import HashedText  # noqa: E402
from gigagan.pipeline import Pipeline  # noqa: E402
from gigagan.provenance import (  # noqa: E402
    SETTINGS,
    Origin,
    Signer,
    load_signer,
    read_signature,
    without_manifest,
)
from tests.certificates import Certificate, make_certificate  # noqa: E402

CapSys = pytest.CaptureFixture[str]
INFO = PictureInfo('snowman "\u2603", 3 < 4', 7, 0.7, "abc")


@pytest.fixture(scope="module")
def signer(certificate: Certificate) -> Signer:
    return load_signer(certificate.chain, certificate.key)


@pytest.fixture(scope="module")
def model(tiny_networks: Callable[[int], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12)).save_pretrained(path)


@pytest.fixture
def configured(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in certificate.environment.items():
        monkeypatch.setenv(name, value)


def picture(seed: int = 0, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def file_of(kind: str) -> bytes:
    if kind == "png":
        return png_bytes(picture(), INFO)
    if kind == "gif":
        buffer = io.BytesIO()
        picture().save(buffer, "GIF", save_all=True, append_images=[picture(1)])
        return buffer.getvalue()
    lossy: Literal["jpeg", "webp"] = "jpeg" if kind == "jpeg" else "webp"
    return lossy_bytes(picture(), INFO, lossy, 90)


def report(content: bytes, kind: str) -> dict[str, Any]:
    """What c2pa's reader says."""
    with (
        c2pa.Context.from_dict(SETTINGS) as context,
        c2pa.Reader(f"image/{kind}", io.BytesIO(content), context=context) as reader,
    ):
        found: dict[str, Any] = json.loads(reader.json())
    return found


def active(found: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = found["manifests"][found["active_manifest"]]
    return manifest


def actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    (one,) = [a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    listed: list[dict[str, Any]] = one["data"]["actions"]
    return listed


def pixels(content: bytes | Path) -> np.ndarray:
    with Image.open(content if isinstance(content, Path) else io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


# Files.


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_signed_file_is_verified_and_keeps_what_it_was(signer: Signer, tmp_path: Path, kind: str) -> None:
    plain = file_of(kind)
    signed = signer.signed(plain, kind, Origin("0123abcd"))
    found = report(signed, kind)
    assert found["validation_state"] == "Valid"
    manifest = active(found)
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"]) == ("open-gigagan", __version__)
    (created,) = actions(manifest)
    assert (created["action"], created["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert created["parameters"]["model"] == "0123abcd"
    assert "time" not in manifest["signature_info"]  # of an authority of time stamps
    assert np.array_equal(pixels(signed), pixels(plain))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(signed)
    if kind != "gif":
        (tmp_path / "plain").write_bytes(plain)
        assert read_info(path) == read_info(tmp_path / "plain")
    said = read_signature(path)
    assert said["signature"] == "valid"
    assert said["signedBy"] == "Signer of tests, The Studio"
    assert said["actions"] == "c2pa.created trainedAlgorithmicMedia"


def test_a_png_without_its_manifest_is_the_file_that_was_signed(signer: Signer) -> None:
    plain = file_of("png")
    assert without_manifest(signer.signed(plain, "png", Origin("x"))) == plain
    for content in (plain, b"", b"\x89PNG", plain[:-5], b"no picture"):
        assert without_manifest(content) == content


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_changed_file_is_told(signer: Signer, tmp_path: Path, kind: str) -> None:
    plain = file_of(kind)
    signed = bytearray(signer.signed(plain, kind, Origin("x")))
    place = bytes(signed).rindex(plain[-60:-50])  # a byte of the picture, which a manifest may stand before or behind
    signed[place] ^= 1
    path = tmp_path / "x"
    path.write_bytes(signed)
    said = read_signature(path)
    assert said["signature"] == "invalid"
    assert "changed after it was signed" in said["signatureDetail"]


def test_a_changed_prompt_and_a_changed_manifest_are_told(signer: Signer, tmp_path: Path) -> None:
    signed = signer.signed(file_of("png"), "png", Origin("0123abcd"))
    path = tmp_path / "x.png"
    for old, new in ((b"snowman", b"showman"), (b"0123abcd", b"0123abce")):
        assert signed.count(old) >= 1
        path.write_bytes(signed.replace(old, new))
        assert read_signature(path)["signature"] == "invalid", old
    other = report(signer.signed(file_of("jpeg"), "jpeg", Origin("x")), "jpeg")
    assert other["validation_state"] == "Valid"
    # A manifest of one picture in the file of another.
    length = int.from_bytes(signed[33:37], "big") + 12
    foreign = png_bytes(picture(5), INFO)
    path.write_bytes(foreign[:33] + signed[33 : 33 + length] + foreign[33:])
    assert read_signature(path)["signature"] == "invalid"


def test_files_that_hold_no_manifest_or_half_of_one(signer: Signer, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for content in (b"", b"jumb c2pa", file_of("png"), file_of("jpeg")):
        path.write_bytes(content)
        assert read_signature(path).get("signature") in (None, "invalid")
    signed = signer.signed(file_of("png"), "png", Origin("x"))
    for end in range(40, len(signed), 997):
        path.write_bytes(signed[:end])
        assert read_signature(path).get("signature") in (None, "invalid"), end


def test_an_enlarged_picture_was_opened_and_edited_and_brings_its_parents_manifest(
    signer: Signer, tmp_path: Path
) -> None:
    parent = tmp_path / "small.png"
    parent.write_bytes(signer.signed(file_of("png"), "png", Origin("base")))
    found = report(signer.signed(file_of("png"), "png", Origin("up", ENHANCED_TYPE, parent)), "png")
    assert found["validation_state"] == "Valid"
    assert len(found["manifests"]) == 2
    opened, edited = actions(active(found))
    assert (opened["action"], edited["action"]) == ("c2pa.opened", "c2pa.edited")
    assert edited["digitalSourceType"] == ENHANCED_TYPE
    assert len(opened["parameters"]["ingredients"]) == 1
    (ingredient,) = active(found)["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    for odd in (b"no picture", b"\x89PNG but no more", b"\xff\xd8\xff", b"RIFF....WEBP", b"II*\0"):
        parent.write_bytes(odd)
        found = report(signer.signed(file_of("png"), "png", Origin("up", ENHANCED_TYPE, parent)), "png")
        assert (found["validation_state"], len(found["manifests"])) == ("Valid", 1)


def test_threads_share_a_signer(signer: Signer) -> None:
    plain = file_of("jpeg")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: signer.signed(plain, "jpeg", Origin(str(n))), range(64)))
    for n, signed in enumerate(made):
        found = report(signed, "jpeg")
        assert found["validation_state"] == "Valid"
        assert actions(active(found))[0]["parameters"]["model"] == str(n)


NO_SOCKETS = """
import ctypes, platform, struct, sys
# A filter of system calls: socket(2) ends the process, in every thread.
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
rules = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), ctypes.addressof(rules))), 0, 0) == 0
if sys.argv[3] == "proof":
    import socket
    socket.socket()
from pathlib import Path
from gigagan.metadata import ENHANCED_TYPE
from gigagan.provenance import Origin, load_signer, read_signature
source = Path(sys.argv[3])
signer = load_signer(Path(sys.argv[1]), Path(sys.argv[2]))
signed = signer.signed(source.read_bytes(), "png", Origin("x", ENHANCED_TYPE, source))
source.write_bytes(signed)
assert read_signature(source)["signature"] == "valid"
print("signed and read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs filters of system calls")
def test_signing_and_reading_open_no_socket(certificate: Certificate, tmp_path: Path) -> None:
    # The parent tells a reader to fetch its manifest from elsewhere.
    place = '<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="http://127.0.0.1:9/x.c2pa"'
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(picture(), INFO).replace(b"<rdf:Description", place.encode()))
    buffer = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt(
        "XML:com.adobe.xmp",
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'{place} rdf:about=""/></rdf:RDF></x:xmpmeta>',
    )
    picture().save(buffer, "PNG", pnginfo=text)
    path.write_bytes(buffer.getvalue())
    command = [sys.executable, "-c", NO_SOCKETS, str(certificate.chain), str(certificate.key)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "signed and read\n"), done.stderr[-2000:]
    assert subprocess.run([*command, "proof"], capture_output=True, check=False).returncode == -31  # SIGSYS


# Commands.


def shown(path: Path, capsys: CapSys) -> dict[str, str]:
    capsys.readouterr()
    assert cli.run(["show", str(path), "--json"]) == 0
    said: dict[str, str] = json.loads(capsys.readouterr().out)
    return said


def test_generate_signs_and_draws_the_same(
    model: Path, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    command = ["generate", "--model", str(model), "--seeds", "0-1", "--out", str(tmp_path), "a red apple"]
    paths = [tmp_path / f"a-red-apple-{seed}.png" for seed in (0, 1)]
    assert cli.run(command) == 0
    plain = [path.read_bytes() for path in paths]
    assert "signature" not in shown(paths[0], capsys)
    for name, value in certificate.environment.items():
        monkeypatch.setenv(name, value)
    assert cli.run(command) == 0  # what is there unsigned is signed
    signed = [path.read_bytes() for path in paths]
    for before, after in zip(plain, signed, strict=True):
        assert without_manifest(after) == before != after
        assert np.array_equal(pixels(before), pixels(after))
    said = shown(paths[1], capsys)
    assert (said["prompt"], said["seed"], said["signature"]) == ("a red apple", "1", "valid")
    assert said["digitalSourceType"] == "trainedAlgorithmicMedia"
    manifest = active(report(signed[1], "png"))
    assert actions(manifest)[0]["parameters"]["model"] == said["model"]
    assert cli.run(command) == 0  # what is there signed stays
    for name in certificate.environment:
        monkeypatch.delenv(name)
    assert cli.run(command) == 0
    assert [path.read_bytes() for path in paths] == signed
    assert sorted(tmp_path.glob("*.png")) == paths


@pytest.mark.usefixtures("configured")
def test_sheets_levels_and_edits_are_signed(model: Path, tmp_path: Path, capsys: CapSys) -> None:
    sheet, out = tmp_path / "sheet.png", tmp_path / "out"
    common = ["--model", str(model)]
    assert cli.run(["generate", *common, "--seeds", "0-1", "--grid", str(sheet), "x"]) == 0
    assert cli.run(["generate", *common, "--seeds", "0", "--levels", "--out", str(out), "x"]) == 0
    assert cli.run(["edit", "mix", *common, "--out", str(out), "x", "y"]) == 0
    assert cli.run(["edit", "interpolate", *common, "--grid", str(tmp_path / "way.png"), "x", "y"]) == 0
    paths = [sheet, tmp_path / "way.png", *out.glob("*.png")]
    assert len(paths) == 6
    for path in paths:
        assert report(path.read_bytes(), "png")["validation_state"] == "Valid", path
        assert shown(path, capsys)["signature"] == "valid"


@pytest.mark.usefixtures("configured")
def test_show_tells_of_a_changed_picture(model: Path, tmp_path: Path, capsys: CapSys) -> None:
    assert cli.run(["generate", "--model", str(model), "--seeds", "0", "--out", str(tmp_path), "a red apple"]) == 0
    path = tmp_path / "a-red-apple-0.png"
    path.write_bytes(path.read_bytes().replace(b"a red apple", b"a red ample"))
    capsys.readouterr()
    assert cli.run(["show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "signature: invalid" in said
    assert "the file was changed after it was signed" in said
    assert "signedBy: Signer of tests, The Studio" in said


def test_without_a_certificate_c2pa_is_not_imported(model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from gigagan import cli\n"
        f"drawn = cli.run(['generate', '--model', {str(model)!r}, '--seeds', '0', '--out', {str(tmp_path)!r}, 'x'])\n"
        "assert drawn == 0\n"
        f"assert cli.run(['show', {str(tmp_path / 'x-0.png')!r}]) == 0\n"
        "assert 'c2pa' not in sys.modules and 'cryptography' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIGAGAN_C2PA")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_other_keys_sign_too(tmp_path: Path, kind: str) -> None:
    found = make_certificate(tmp_path, kind=kind)
    signed = load_signer(found.chain, found.key).signed(file_of("png"), "png", Origin("x"))
    assert report(signed, "png")["validation_state"] == "Valid"


def test_a_key_in_openssls_older_form_is_read(tmp_path: Path) -> None:
    found = make_certificate(tmp_path, form=PrivateFormat.TraditionalOpenSSL)
    assert b"BEGIN EC PRIVATE KEY" in found.key.read_bytes()
    load_signer(found.chain, found.key)
