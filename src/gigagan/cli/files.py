"""Files that commands write: named after prompts, whole or not at all, never over another picture."""

import itertools
import os
import re
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.data.places import write_whole
from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from gigagan.cli.signing import Sign

MAX_SLUG_BYTES = 80  # file systems take 255 bytes a name


def slug(prompt: str) -> str:
    """A prompt as part of a file name: letters and digits of any script, the rest as single hyphens."""
    plain = unicodedata.normalize("NFC", prompt).lower()
    words = re.findall(r"[^\W_]+", plain)
    cut = "-".join(words).encode()[:MAX_SLUG_BYTES].decode(errors="ignore")
    return cut.strip("-") or "picture"


def typed(option: str) -> bool:
    """Whether an option of the command that runs was typed."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def printable(text: str) -> str:
    """What a file says, as it can be printed: it can hold anything, but not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def check_place(path: Path, *, folder: bool) -> None:
    """What can be known of the output before anything is loaded; `probe` finds out the rest."""
    if not folder and path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: a sheet is a PNG file; give a name that ends in .png")
    if not folder and path.is_dir():
        raise ConfigError(f"{path}: is a folder; give --grid the name of a file")
    if folder and path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file; give --out the name of a folder")
    _check_parent(path, path.absolute() if folder else path.absolute().parent)


def check_target(path: Path, *suffixes: str) -> None:
    """The same for a file of another kind."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: give a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    _check_parent(path, path.absolute().parent)


def check_new(*paths: Path) -> None:
    """Raises ConfigError where there is something already: what a command finds shall replace nothing."""
    for path in paths:
        if os.path.lexists(path):
            raise ConfigError(f"{path}: exists; give another --out")


def _check_parent(path: Path, parent: Path) -> None:
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: can't be written, because {parent} can't; give another place")


def probe(folder: Path) -> None:
    """Make the folder and a file in it: says at once what would go wrong after minutes of drawing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def save_new(folder: Path, stem: str, content: bytes, sign: "Sign") -> Path:
    """Write stem.png, or stem-1.png ... where the name holds another picture; a file with this content stays.

    A signed file holds the content that was signed. Where it is there unsigned, `sign` signs it.
    """
    from gigagan.provenance import without_manifest

    for number in itertools.count():
        path = folder / (f"{stem}-{number}.png" if number else f"{stem}.png")
        if not path.exists():
            with suppress(FileExistsError):  # another run was first to take the name
                write_whole(path, sign(content), new=True)
                return path
        held = path.read_bytes() if path.is_file() else b""
        if held == content:
            if (signed := sign(content)) != held:
                write_whole(path, signed)
            return path
        if without_manifest(held) == content:
            return path
    raise AssertionError("count() ends")


def check_folders(*paths: Path | None) -> None:
    """Raises ConfigError where a file to be written has no folder that takes it."""
    for path in paths:
        if path is not None and not (path.absolute().parent.is_dir() and os.access(path.absolute().parent, os.W_OK)):
            raise ConfigError(f"{path}: can't be written; its folder must exist and be writable")
