"""README's file tree is the tree, its links lead somewhere, its commands and names exist."""

import re
import subprocess
from pathlib import Path

import pytest

import gigagan
from gigagan.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Not worth a line of their own.
UNLISTED = {".gitignore", ".gitattributes", ".dockerignore"}


def listed() -> dict[str, str]:
    """Path and purpose of each line of the tree."""
    tree = README.split("## Files\n\n```\n", 1)[1].split("\n```", 1)[0]
    lines: dict[str, str] = {}
    for line in tree.splitlines():
        path, _, purpose = line.strip().partition(" ")
        prefix = "src/gigagan/" if line.startswith("  ") else ""
        lines[prefix + path] = purpose.strip()
    return lines


def test_every_line_of_the_tree_exists_and_has_a_purpose() -> None:
    for path, purpose in listed().items():
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path
        assert purpose, path


def test_everything_at_the_top_and_in_the_package_is_in_the_tree() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    wanted = set()
    for name in done.stdout.splitlines():
        for prefix in ("", "src/gigagan/"):
            if name.startswith(prefix):
                first, slash, _ = name[len(prefix) :].partition("/")
                wanted.add(prefix + first + slash)
    wanted = wanted - UNLISTED - {"src/", "src/gigagan/py.typed"} | {"src/gigagan/"}
    assert wanted == set(listed())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_make_targets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in re.findall(r"(?:^|`)gigagan ([a-z]\w*)", text, re.MULTILINE):
        assert command in COMMANDS, command
    for target in re.findall(r"(?:^ {4}|`)make ([a-z][\w-]*)", text, re.MULTILINE):
        assert target in targets, target


def test_the_public_names_are_there() -> None:
    for name in gigagan.__all__:
        assert getattr(gigagan, name).__name__ == name
        assert name in dir(gigagan)
    assert gigagan.__all__ == sorted(gigagan.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        gigagan.Pipelin  # noqa: B018


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {gigagan.__version__}\n" in citation
    assert f"## {gigagan.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
