"""Forms that mean harm or are no forms, for pictures to enlarge: each is told its mistake, the next one is served."""

import io
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from tests.reliability.sets import sizes

UPSCALE = "/images/upscale"
BOUNDARY = b"a-boundary"
FORM = "multipart/form-data; boundary=a-boundary"
Part = tuple[bytes, bytes, bytes | None]
"""A field's name, its content, and a file's name where it is a file."""

NAMES = [b"x.png", b"", b"../../etc/passwd", b"/etc/passwd", b"C:\\x.png", b"a\0b.png", b"\xff\xfe.png", b"%2e%2e%2f"]
NAMES += [
    b"x" * 2000,
    b"; name=",
    b"$(reboot).png",
    b"http://169.254.169.254/x",
    b"con",
    "é\u202egnp.exe".encode(),
    b".",
]
BREAKING = [b'"', b'a"; name="scale', b"a\r\nX: y", b'\r\n\r\n"', b"x" * 20_000]
"""Names that end the header they stand in."""

NO_NUMBER = [b"", b"NaN", b"-Infinity", b"1e400", b"2.5", b"two", b"-1", b"0x2", b"[2]", b"{}", b"null", b"true"]
NO_NUMBER += [b"9" * 30, b"9" * 5000, b"2\0", b"2;3", b"\xff", b"../2", b"http://127.0.0.1/2"]
BAD: dict[str, list[bytes]] = {
    "scale": [*NO_NUMBER, b"0", b"1", b"3", b"16"],
    "to": [*NO_NUMBER, b"0", b"4", b"65536", b"60000"],
    "seed": [*NO_NUMBER, b"9223372036854775808"],
    "n": [*NO_NUMBER, b"0", b"2"],
    "output_compression": [*NO_NUMBER, b"101", b"50"],
    "prompt": [b"\0", b"a\0b", b"x" * 4001, b"x" * 32_001, b"\xff", b"\xed\xa0\x80", b"\xc0\x80"],
    "output_format": [b"", b"gif", b"svg", b"PNG", b"../png", b"\xff"],
    "response_format": [b"", b"url", b"file", b"b64_json\0"],
    "model": [b"", b"../..", b"file:///etc/passwd", b"http://169.254.169.254", b"emoji\0", b"\xff"],
    "user": [b"x" * 513, b"\xff"],
}
UNKNOWN = [
    "images",
    "image_url",
    "url",
    "file",
    "mask",
    "callback",
    "__proto__",
    "Scale",
    "scale[]",
    "image.x",
    "size",
    "é",
]


def picture(kind: str = "PNG", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


GOOD = picture()
NO_PICTURE = [
    b"",
    b"\0",
    b"a cat",
    b"{}",
    b"http://169.254.169.254/x.png",
    b"file:///etc/passwd",
    b"<svg/>",
    b"%!PS-Adobe-3.0 EPSF",
]
NO_PICTURE += [
    b"%PDF-1.7",
    b"PK\3\4" + bytes(60),
    b"<!ENTITY x SYSTEM 'file:///etc/passwd'>",
    GOOD[:8],
    GOOD[:30],
    GOOD[8:],
]
NO_PICTURE += [
    picture("GIF"),
    picture("BMP"),
    picture("ICO", (16, 16)),
    picture("PPM"),
    picture("JPEG")[:100],
    b"\xff\xd8\xff",
]
NO_PICTURE += [
    GOOD[:16] + bytes.fromhex("7fffffff7fffffff") + GOOD[24:],
    GOOD[:16] + bytes(8) + GOOD[24:],
    b"II*\0" + b"\xff" * 40,
]


@dataclass
class Bent:
    """A request that can't be served, and which field is to blame."""

    content: bytes
    kind: str = FORM
    params: set[str | None] = field(default_factory=lambda: {None})
    """Those that may be named."""


def form(parts: list[Part]) -> bytes:
    """As RFC 7578 says, nothing escaped."""
    lines = []
    for name, content, filename in parts:
        said = b'Content-Disposition: form-data; name="%b"' % name
        said += b"" if filename is None else b'; filename="%b"\r\nContent-Type: image/png' % filename
        lines += [b"--" + BOUNDARY, said, b"", content]
    return b"\r\n".join([*lines, b"--" + BOUNDARY + b"--", b""])


def bent(rng: random.Random) -> Bent:
    """A good form with one mistake: of its frame, of a field, or of the picture."""
    image: Part = (rng.choice([b"image", b"image[]"]), GOOD, rng.choice(NAMES))
    parts: list[Part] = [image, (b"scale", b"2", None)]
    rng.shuffle(parts)
    return rng.choice([_frame, _field, _picture])(rng, parts, image)


def _frame(rng: random.Random, parts: list[Part], image: Part) -> Bent:
    good = form(parts)
    match rng.randrange(7):
        case 0:
            kinds = ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other"]
            kinds += ["multipart/form-data; boundary=" + "x" * 300, 'multipart/form-data; boundary="', f"{FORM}x"]
            return Bent(good, rng.choice(kinds))
        case 1:
            kinds = [
                "",
                "application/json",
                "text/plain",
                "multipart/mixed; boundary=a-boundary",
                "image/png",
                "form-data",
            ]
            return Bent(good, rng.choice([*kinds, "application/x-www-form-urlencoded"]))
        case 2:
            return Bent(good[: rng.randrange(len(good) - 2)])
        case 3:
            return Bent(
                rng.choice([b"", b"--", b"\r\n", rng.randbytes(rng.randrange(500)), json.dumps({"scale": 2}).encode()])
            )
        case 4:
            head = rng.choice([b"", b"form-data", b"attachment; name=image", b'form-data; name=""', b"x" * 9000])
            part = b"--a-boundary\r\nContent-Disposition: " + head + b"\r\n\r\n" + GOOD + b"\r\n"
            return Bent(part + good)
        case 5:
            return Bent(form([*parts, *((b"x%d" % n, b"", None) for n in range(40))]))
        case _:
            name, content, _ = image
            broken = form([(name, content, rng.choice(BREAKING)), (b"scale", b"3", None)])
            return Bent(broken, params={None, "scale", "image"})


def _field(rng: random.Random, parts: list[Part], image: Part) -> Bent:
    match rng.randrange(4):
        case 0:
            name = rng.choice(UNKNOWN)
            return Bent(form([*parts, (name.encode(), rng.choice([b"", b"x", GOOD]), None)]), params={name})
        case 1:
            name = rng.choice(["scale", "image", "prompt", "seed", image[0].decode()])
            twice = [one for one in [*parts, (b"prompt", b"", None), (b"seed", b"1", None)] if one[0] == name.encode()]
            again = (name.encode(), GOOD if name == "image" else b"2", None)
            return Bent(form([*parts, again, *(twice or [again])]), params={name, "image"})
        case _:
            name = rng.choice(list(BAD))
            others = [one for one in parts if one[0] != b"scale"] if name in ("scale", "to") else parts
            value = rng.choice(BAD[name])
            return Bent(form([*others, (name.encode(), value, rng.choice([None, *NAMES]))]), params={name})


def _picture(rng: random.Random, parts: list[Part], image: Part) -> Bent:
    others = [one for one in parts if one is not image]
    match rng.randrange(4):
        case 0:
            return Bent(form(others), params={"image"})
        case 1:
            return Bent(form([*others, (image[0], GOOD[: rng.randrange(len(GOOD) - 30)], image[2])]), params={"image"})
        case 2:
            return Bent(form([*others, (image[0], rng.randbytes(rng.randrange(3000)), image[2])]), params={"image"})
        case _:
            return Bent(form([*others, (image[0], rng.choice(NO_PICTURE), image[2])]), params={"image"})


def post(client: httpx.Client, server: Any, content: bytes, kind: str = FORM) -> httpx.Response:
    return client.post(f"{server.url}{UPSCALE}", content=content, headers={"content-type": kind}, timeout=60)


@sizes(400, 10_000)
def test_g1_malformed_forms(server: Any, count: int) -> None:
    """Row G1, the upscale's part."""
    rng = random.Random(count)
    with httpx.Client() as client:
        for _ in range(count):
            sent = bent(rng)
            answer = post(client, server, sent.content, sent.kind)
            told = (answer.status_code, answer.text[:300], sent.kind, sent.content[:400], sent.content[-300:])
            assert 400 <= answer.status_code < 500, told
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, told
            assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code")), told
            assert error["param"] in sent.params, told
            assert "Traceback" not in answer.text
            assert "/site-packages" not in answer.text
        for name in NAMES:  # a file's name is nobody's business
            assert post(client, server, form([(b"image", GOOD, name), (b"scale", b"2", None)])).status_code == 200, name
