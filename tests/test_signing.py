"""Certificates that don't fit, keys of others, a missing package: told in one line, before any work."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("c2pa")

from gigagan import cli
from gigagan.metadata import PictureInfo, png_bytes
from gigagan.provenance import Origin, load_signer
from tests.certificates import Certificate, make_certificate

CapSys = pytest.CaptureFixture[str]
PICTURE = png_bytes(Image.new("RGB", (8, 8)), PictureInfo("x", 7, 0.7, "abc"))


def refusal(chain: Path | str, key: Path | str, monkeypatch: pytest.MonkeyPatch, capsys: CapSys, folder: Path) -> str:
    """What every command says, before it looks for a model and with nothing written."""
    monkeypatch.setenv("GIGAGAN_C2PA_CERT", str(chain))
    monkeypatch.setenv("GIGAGAN_C2PA_KEY", str(key))
    out = folder / "never"
    small = folder / "small.png"
    Image.new("RGB", (64, 64)).save(small)
    said = set()
    for command in (
        ["generate", "--out", str(out), "x"],
        ["edit", "mix", "--out", str(out), "x", "y"],
        ["edit", "directions", "--out", f"{out}.safetensors", "x"],
        ["edit", "project", "--out", f"{out}.safetensors", str(small), "x"],
        ["upsample", "--out", str(out), str(small)],
        ["serve", "--port", "0"],
    ):
        assert cli.run([*command, "--model", "no-such-model"]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        said.add(err)
    assert not out.exists()
    assert len(said) == 1, said
    return said.pop()


def test_mistakes_are_told_at_the_start(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    def told(chain: Path | str, key: Path | str) -> str:
        return refusal(chain, key, monkeypatch, capsys, tmp_path)

    good = certificate
    assert "GIGAGAN_C2PA_CERT is set and GIGAGAN_C2PA_KEY isn't" in told(good.chain, "")
    assert "GIGAGAN_C2PA_KEY is set and GIGAGAN_C2PA_CERT isn't" in told("", good.key)
    assert "no-such.pem: can't be read (No such file or directory)" in told("no-such.pem", good.key)
    assert "can't be read" in told(good.chain, tmp_path)
    assert "holds no CERTIFICATE; expected a PEM file" in told(good.key, good.key)
    assert "holds no PRIVATE KEY; expected a PEM file" in told(good.chain, good.chain)
    half = tmp_path / "half.pem"
    half.write_bytes(good.chain.read_bytes()[:200])
    assert "isn't a whole certificate" in told(half, good.key)
    half.write_bytes(good.key.read_bytes()[:100])
    assert "isn't a whole private key" in told(good.chain, half)
    other = make_certificate(tmp_path / "other")
    assert "isn't the key of the first certificate" in told(good.chain, other.key)
    locked = make_certificate(tmp_path / "locked", password=b"secret")
    assert "is encrypted; expected a private key without a password" in told(locked.chain, locked.key)
    old = make_certificate(tmp_path / "old", days=-1)
    assert "is valid from" in told(old.chain, old.key)
    strange = make_certificate(tmp_path / "strange", kind="secp256k1")
    assert "is a key that C2PA doesn't sign by; expected EC P-256" in told(strange.chain, strange.key)
    other = make_certificate(tmp_path / "unfit", use="key_encipherment")
    assert "C2PA takes no signature by it" in told(other.chain, other.key)


def test_a_missing_package_is_told(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    signed = tmp_path / "x.png"
    signer = load_signer(certificate.chain, certificate.key)
    signed.write_bytes(signer.signed(PICTURE, "png", Origin("x")))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    said = refusal(certificate.chain, certificate.key, monkeypatch, capsys, tmp_path)
    assert "c2pa-python isn't installed; run: pip install 'open-gigagan[c2pa]'" in said
    assert cli.run(["show", str(signed), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["signature"] == "unchecked"
    assert "pip install 'open-gigagan[c2pa]'" in info["signatureDetail"]
