"""Packages come from a registry of the user's choice, are checked by hash, and give only what is wanted of them."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from gigagan.data import packages
from gigagan.data.packages import Package
from gigagan.errors import DataError


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of one package, as files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("package/icons.json", "package/other.js", "package/../../icons.json", "package/assets/a.webp"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("package/assets/link.webp")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    content = buffer.getvalue()
    package = Package("@x/icons", "1.0.0", hashlib.sha512(content).hexdigest(), ("icons.json", "assets/"))
    monkeypatch.setattr(packages, "PACKAGES", {"flat": package})
    path = tmp_path / "registry/@x/icons/-/icons-1.0.0.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return tmp_path / "registry"


def test_fetch_unpacks_what_is_wanted_and_once(registry: Path, tmp_path: Path) -> None:
    folders = packages.fetch(tmp_path / "cache", registry=registry.as_uri(), npm=False)

    folder = folders["flat"]
    assert folder == tmp_path / "cache/x-icons-1.0.0"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == [".complete", "assets/a.webp", "icons.json"]
    assert packages.fetch(tmp_path / "cache", registry="file:///gone", npm=False) == folders
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["x-icons-1.0.0"]


def test_a_registry_that_is_not_there(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can't be fetched .* check the network"):
        packages.fetch(tmp_path / "cache", registry="file:///gone", npm=False)


def test_another_content_is_refused(registry: Path, tmp_path: Path) -> None:
    path = registry / "@x/icons/-/icons-1.0.0.tgz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="sha512"):
        packages.fetch(tmp_path / "cache", registry=registry.as_uri(), npm=False)
    assert not list((tmp_path / "cache").iterdir())


def test_pinned_packages() -> None:
    for package in packages.PACKAGES.values():
        assert len(package.sha512) == 128
        assert package.licence in ("MIT", "Apache-2.0", "CC-BY-4.0")
        assert package.url.startswith("https://")
