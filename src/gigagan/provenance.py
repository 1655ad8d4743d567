"""C2PA: pictures signed with the certificate of whoever runs the program, and what a signed file says.

A manifest says how the picture was made, and is bound to every other byte of its file, prompt and seed among them.
Nothing here opens a connection: no time stamps, no revocation lists, no manifests elsewhere.
"""

import io
import json
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from gigagan import __version__
from gigagan.errors import ConfigError, MissingExtra
from gigagan.metadata import ENHANCED_TYPE, SOURCE_TYPE

if TYPE_CHECKING:
    from c2pa import Builder, Context
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

MAX_SIGNED_BYTES = 2**30
"""Of a picture's pixels: c2pa holds a PNG twice while it signs (370 MB for one of 192 MB, measured)."""
PARENTS = {
    "image/png": rb"\x89PNG",
    "image/jpeg": rb"\xff\xd8",
    "image/webp": rb"RIFF....WEBP",
    "image/tiff": rb"II\*\0|MM\0\*",
}
"""Formats in which a picture may bring a manifest of its own, and how their files begin."""
SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
    "builder": {"thumbnail": {"enabled": False}},
}
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
MIN_RSA_BITS = 2048  # C2PA's least
PARENT = "parent"
UNTRUSTED = "signingCredential.untrusted"
PNG_SIGNATURE_BYTES = 8
MANIFEST_CHUNK = b"caBX"


@dataclass(frozen=True)
class Origin:
    """How a picture was made, as its manifest tells it."""

    model: str
    """Hash of the model (`checkpoint.model_hash`)."""
    source_type: str = SOURCE_TYPE
    """IPTC's term. With ENHANCED_TYPE somebody's picture was opened and changed; else this one was created."""
    parent: Path | None = None
    """Of an enlarged picture the file it was made of, whose own manifest goes along; None = nothing is said of it."""

    @property
    def manifest(self) -> dict[str, Any]:
        """For c2pa's builder, without the parent."""
        agent = {"name": "open-gigagan", "version": __version__}
        done = {"softwareAgent": agent, "digitalSourceType": self.source_type, "parameters": {"model": self.model}}
        actions: list[dict[str, Any]] = [{"action": "c2pa.created", **done}]
        if self.source_type == ENHANCED_TYPE:
            opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}
            actions = [opened, {"action": "c2pa.edited", **done}]
        data = {"actions": actions, "allActionsIncluded": True}
        return {"claim_generator_info": [agent], "assertions": [{"label": "c2pa.actions.v2", "data": data}]}


class Signer:
    """A certificate and its key. Made by `load_signer`; threads may share it."""

    def __init__(self, context: "Context") -> None:
        self._context = context

    def signed(self, content: bytes, kind: str, origin: Origin) -> bytes:
        """The file of a picture with a manifest; `kind`: png, jpeg, webp or gif."""
        buffer = io.BytesIO()
        self.sign(io.BytesIO(content), buffer, f"image/{kind}", origin)
        return buffer.getvalue()

    def sign(self, source: BinaryIO, target: BinaryIO, mime: str, origin: Origin) -> None:
        """The same from one file to another, which is open to be read as well."""
        self._builder(origin).sign(mime, source, target)

    def _builder(self, origin: Origin) -> "Builder":
        from c2pa import Builder, C2paError

        said = {"title": "original", "relationship": "parentOf", "label": PARENT}
        if origin.source_type != ENHANCED_TYPE:
            return Builder(origin.manifest, self._context)
        if mime := _parent_mime(origin.parent):
            assert origin.parent is not None
            builder = Builder(origin.manifest, self._context)
            try:
                with origin.parent.open("rb") as file:
                    builder.add_ingredient(said, mime, file)
            except C2paError:  # a file that Pillow reads and c2pa can't; it is named without what it brings
                builder.close()
            else:
                return builder
        return Builder({**origin.manifest, "ingredients": [said]}, self._context)


def _parent_mime(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        head = file.read(12)
    return next((mime for mime, start in PARENTS.items() if re.match(start, head, re.DOTALL)), "")


def load_signer(cert: Path, key: Path) -> Signer:
    """A signer of two PEM files, which has signed a trial picture. Raises ConfigError, MissingExtra."""
    chain, secret = _pem(cert, "CERTIFICATE"), _pem(key, "PRIVATE KEY")
    try:
        from c2pa import C2paError, C2paSignerInfo, Context, Reader
        from c2pa import Signer as C2paSigner
    except ImportError:
        raise MissingExtra("c2pa-python", "c2pa") from None
    algorithm, plain = _checked(cert, chain, key, secret)
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    try:
        info = C2paSignerInfo(algorithm.encode(), chain, plain, None)  # None: no authority of time stamps
        context = Context.from_dict(SETTINGS, signer=C2paSigner.from_info(info))
        signer = Signer(context)
        trial = io.BytesIO(signer.signed(pixel.getvalue(), "png", Origin("")))
        with Reader("image/png", trial, context=context) as reader:
            failed = [code for code in _failures(json.loads(reader.json())) if code != UNTRUSTED]
    except C2paError as error:
        failed = [_line(error)]
    if failed:
        wanted = "expected one of an authority, for signing (digitalSignature; emailProtection or documentSigning)"
        raise ConfigError(f"{cert}: C2PA takes no signature by it ({', '.join(failed)}); {wanted}, then its chain")
    return signer


def _checked(cert: Path, chain: bytes, key: Path, secret: bytes) -> tuple[str, bytes]:
    """C2PA's name of the algorithm, and the key as it reads keys. Raises ConfigError where the two don't fit."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        public = leaf.public_key()
    except ValueError as error:
        raise ConfigError(f"{cert}: isn't a whole certificate ({_line(error)}); get it again") from None
    try:
        private = load_pem_private_key(secret, password=None)
    except TypeError:
        raise ConfigError(f"{key}: is encrypted; expected a private key without a password") from None
    except ValueError as error:
        raise ConfigError(f"{key}: isn't a whole private key ({_line(error)}); get it again") from None
    if private.public_key() != public:
        raise ConfigError(f"{key}: isn't the key of the first certificate in {cert}; give the one that it was made for")
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        days = f"{leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"{cert}: is valid from {days}, and today is {now:%Y-%m-%d}; get a new one")
    return _algorithm(private, key), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(path: Path, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); expected a PEM file with a {what}") from None
    if not re.search(rb"-----BEGIN [A-Z ]*" + what.encode() + rb"-----", content):
        raise ConfigError(f"{path}: holds no {what}; expected a PEM file with one")
    return content


def _algorithm(key: "PrivateKeyTypes", path: Path) -> str:
    """C2PA's name of what a key signs by."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    expected = f"expected EC P-256, P-384 or P-521, Ed25519, or RSA of {MIN_RSA_BITS} bits or more"
    raise ConfigError(f"{path}: is a key that C2PA doesn't sign by; {expected}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def without_manifest(content: bytes) -> bytes:
    """A PNG as it was before it was signed; anything else as it is."""
    parts, start = [content[:PNG_SIGNATURE_BYTES]], PNG_SIGNATURE_BYTES
    while start + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if name != MANIFEST_CHUNK:
            parts.append(content[start:end])
        start = end
    return b"".join([*parts, content[start:]])


def read_signature(path: Path) -> dict[str, str]:
    """Whether a picture is signed, by whom, and whether it is still as it was then; empty where it isn't signed.

    `signature` is valid, invalid, or unchecked where the package is missing.
    """
    if not _holds_manifest(path):
        return {}
    try:
        from c2pa import C2paError, Context, Reader
    except ImportError:
        said = str(MissingExtra("c2pa-python", "c2pa"))
        return {"signature": "unchecked", "signatureDetail": f"there is one, but {said}"}
    try:
        with Context.from_dict(SETTINGS) as context, path.open("rb") as file, Reader(file, context=context) as reader:
            found = json.loads(reader.json())
    except C2paError as error:
        if isinstance(error, C2paError.ManifestNotFound):
            return {}
        return {"signature": "invalid", "signatureDetail": f"its manifest can't be read ({_line(error)})"}
    manifest = found.get("manifests", {}).get(found.get("active_manifest"), {})
    return {**_told(manifest), **_verdict(found)}


def _holds_manifest(path: Path) -> bool:
    """Whether it is worth to import c2pa; of a picture of gigabytes no copy is made."""
    with path.open("rb") as file:
        if not file.seek(0, io.SEEK_END):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"jumb") >= 0 and content.find(b"c2pa") >= 0


def _told(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What is signed; true only where the signature is valid."""
    signer = manifest.get("signature_info", {})
    names = [signer.get(key) for key in ("common_name", "issuer")]
    generators = [f"{g.get('name', '')} {g.get('version', '')}" for g in manifest.get("claim_generator_info", [])]
    done = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    told = [f"{a.get('action')} {str(a.get('digitalSourceType') or '').rpartition('/')[2]}".strip() for a in done]
    return {
        "signedBy": ", ".join(str(name) for name in dict.fromkeys(names) if name) or "somebody without a name",
        "claimGenerator": ", ".join(generators).strip(),
        "actions": ", ".join(told),
    }


def _verdict(found: Mapping[str, Any]) -> dict[str, str]:
    failed = [code for code in _failures(found) if code != UNTRUSTED]
    if failed or found.get("validation_state") not in ("Valid", "Trusted"):
        reason = ", ".join(failed) or "it can't be verified"
        changed = any("mismatch" in code for code in failed)
        said = "the file was changed after it was signed" if changed else "the signature doesn't verify"
        return {"signature": "invalid", "signatureDetail": f"{said} ({reason})"}
    if found["validation_state"] == "Valid":
        return {
            "signature": "valid",
            "signatureDetail": "the file is as it was signed; whether the signer's name is true wasn't checked",
        }
    return {"signature": "valid", "signatureDetail": "the file is as it was signed"}


def _failures(found: Mapping[str, Any]) -> list[str]:
    """C2PA's codes of what doesn't hold of the picture's own manifest."""
    active = found.get("validation_results", {}).get("activeManifest", {})
    return list(dict.fromkeys(one["code"] for one in active.get("failure", [])))
