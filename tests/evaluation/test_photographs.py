"""The photographs to measure by: what is taken of the package, and that no other package is."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan.errors import DataError
from gigagan.evaluation import photographs as module
from gigagan.evaluation.photographs import STAMPS, photographs


def png(size: tuple[int, int], color: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    Image.new("RGBA", size, color).save(content, "PNG")
    return content.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: ar archive of a member of odd length, and a tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(STAMPS + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", data.getvalue())):
        made += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        made += b"\n" * (len(content) % 2)
    return made


def test_large_photographs_with_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    red, clear = (255, 0, 0, 255), (255, 0, 0, 0)
    content = deb(
        {
            "b/tree.png": png((300, 256), red),
            "b/tree.txt": "A tree!\nes.utf8=Un árbol.\n".encode(),
            "a/fog.png": png((256, 700), clear),
            "a/fog.txt": b"Fog.\n",
            "a/small.png": png((300, 255), red),
            "a/small.txt": b"Too small.\n",
            "a/silent.png": png((300, 300), red),
            "a/cartoon/cat.png": png((300, 300), red),
            "a/cartoon/cat.txt": b"A cat.\n",
            "a/bee.png": png((300, 300), red),
            "a/bee.txt": b"A bee.\n",
        }
    )
    (tmp_path / module.PACKAGE).write_bytes(content)
    with pytest.raises(DataError, match="not used; remove it to fetch it again"):
        photographs(tmp_path)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(content).hexdigest())
    fog, tree = photographs(tmp_path)
    assert (fog.caption, tree.caption) == ("Fog", "A tree")
    assert np.array_equal(tree.image, np.full((256, 256, 3), (255, 0, 0)))
    assert np.array_equal(fog.image, np.full((256, 256, 3), 255))


def test_without_a_network_it_says_where_to_put_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/package.deb")
    with pytest.raises(DataError, match=r"can't be fetched .* put it into .* by hand"):
        photographs(tmp_path)
    assert list(tmp_path.iterdir()) == []
