"""Photographs to measure an upsampler by: cut-outs of a Debian package, unlike anything that the shipped one learned.

The package is fetched when it is first asked for, checked against its hash and kept; nothing of it is run or passed on.
"""

import hashlib
import io
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gigagan.data.sampling import WHITE, composite
from gigagan.data.weights import CACHE
from gigagan.errors import DataError

PACKAGE = "tuxpaint-stamps-default_2022.06.04-1_all.deb"
URL = f"http://deb.debian.org/debian/pool/main/t/tuxpaint-stamps/{PACKAGE}"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
STAMPS = "./usr/share/tuxpaint/stamps/"
DRAWN = frozenset(
    [
        "0_sun",
        "7spoke256",
        "bee",
        "candy_cane",
        "cartoon",
        "final-roll-call",
        "glass",
        "hats",
        "hedgehog",
        "inukshuk-outline",
        "jackolantern_mean",
        "lightningbolt",
        "paratrooper",
        "pizza",
        "roadsigns",
        "symbols",
        "t_jacket",
    ]
)
"""Folders and files that are drawings, or hardly more than white."""
SIDE = 256
"""Of the square that is cut from the middle of each; smaller ones are left out."""
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True)
class Photograph:
    """One cut-out, on white."""

    caption: str
    image: UInt8[np.ndarray, "256 256 3"]


def photographs(cache: Path = CACHE) -> list[Photograph]:
    """Every one that is large enough, by its place in the package. Raises DataError offline or for another package."""
    with _data(_package(cache.expanduser())) as archive:
        stamps = {member.name: member for member in archive if member.isreg() and member.name.startswith(STAMPS)}
        return list(_cut(archive, stamps))


def _cut(archive: tarfile.TarFile, stamps: dict[str, tarfile.TarInfo]) -> Iterator[Photograph]:
    for name in sorted(stamps):
        told = stamps.get(f"{name.removesuffix('.png')}.txt")
        if not name.endswith(".png") or told is None or DRAWN & set(name.removesuffix(".png").split("/")):
            continue
        with Image.open(io.BytesIO(_read(archive, stamps[name]))) as image:
            if min(image.size) >= SIDE:
                left, top = ((n - SIDE) // 2 for n in image.size)
                middle = image.convert("RGBA").crop((left, top, left + SIDE, top + SIDE))
                # The first line is the English one: "A hedgehog."
                caption = _read(archive, told).decode("utf-8", "replace").splitlines()[0].strip().rstrip(".!")
                yield Photograph(caption, composite(np.asarray(middle), WHITE))


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _data(package: Path) -> tarfile.TarFile:
    """The files of a .deb: an ar archive, one of whose members is a tar."""
    content = package.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(f"{package}: has sha256 {digest}; expected {SHA256}: not used; remove it to fetch it again")
    place = len(AR_MAGIC)
    while place < len(content):
        header = content[place : place + AR_HEADER]
        name, size = header[:16].decode().strip(), int(header[48:58])
        place += AR_HEADER
        if name.startswith("data.tar"):
            return tarfile.open(fileobj=io.BytesIO(content[place : place + size]))
        place += size + size % 2
    raise AssertionError(f"{package}: holds no data")


def _package(cache: Path) -> Path:
    path = cache / PACKAGE
    if path.is_file():
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".photographs-") as scratch:
            fetched = Path(scratch) / PACKAGE
            with urllib.request.urlopen(URL, timeout=60) as response, fetched.open("wb") as file:
                shutil.copyfileobj(response, file)
            fetched.rename(path)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"{URL}: can't be fetched ({error}); put it into {cache} by hand, or check the network"
        ) from None
    return path
