"""What imports don't show: where each kind of line belongs, how long a file gets, what the documents promise."""

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gigagan"
# What lies beside the weights goes with them, for diffusers; it is no module of the package.
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "pretrained" not in path.parts)
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
TAGS = ("Paper:", "Unstated:", "Deviation:")

ONLY_IN = {
    r"\.backward\(": ["training/steps.py", "training/distill_mapping.py", "evaluation/fit.py", "editing/projection.py"],
    r"\b(optimizer|opt_\w|optim_\w)\.step\(|\.zero_grad\(": [
        "training/loop.py",
        "training/state.py",
        "training/distill_mapping.py",
        "evaluation/fit.py",
        "editing/projection.py",
    ],
    r"\btorch\.save\(": [],
    r"\btorch\.load\(": ["data/unpickle.py"],
    r"\b(import|from) pickle\b|\bpickle\.": [],
    r"(?<![\w.])print\(": ["cli/*", "training/stats.py"],
    r"\bos\.environ\b|\bgetenv\(": ["dist.py", "cli/*"],
    r"\btorch\.distributed\b": ["dist.py", "launch.py", "training/sharding.py"],
    # The global generators. Anything else takes a torch.Generator or a seed.
    r"\btorch\.(manual_seed|seed)\(|\bnp\.random\.(?!default_rng|Generator|SeedSequence)\w|\brandom\.seed\(": [
        "training/loop.py"
    ],
    r"\b(import|from) yaml\b|\byaml\.": ["config/load.py"],
    r"\b(import|from) (fastapi|starlette|uvicorn)\b": ["serving/*", "studio/app.py"],
    r"\b(import|from) gradio\b": ["studio/*"],
    r"\.cuda\(|\"cuda\"": ["cli/*", "dist.py"],
    r"\bsuppress\(Exception|except Exception: *pass": [],
}
"""A pattern in the code (comments and strings of documentation aside) and the only files that may have it."""


@cache
def code_lines(path: Path) -> dict[int, str]:
    """The lines of a file without comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = dict(enumerate(text.splitlines(), 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            for number in range(node.lineno, node.end_lineno + 1):
                lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row] = lines[row][:column]
    return lines


@cache
def comments(path: Path) -> list[str]:
    """Each run of comment lines as one text."""
    found: list[str] = []
    last = -2
    with path.open(encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            text = token.string.lstrip("# ")
            alone = not token.line[: token.start[1]].strip()
            if alone and token.start[0] == last + 1 and not text.startswith(TAGS):
                found[-1] += " " + text
            else:
                found.append(text)
            last = token.start[0] if alone else -2
    return found


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tracked() -> list[Path]:
    """What git holds; of a copy without git, everything."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = done.stdout.decode().split("\0") if done.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [p for p in ROOT.rglob("*") if ".venv" not in p.parts]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("pattern", ONLY_IN)
def test_a_kind_of_line_has_its_place(pattern: str) -> None:
    allowed = ONLY_IN[pattern]
    strays = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in SOURCES
        if not any(path.match(f"gigagan/{place}") for place in allowed)
        for number, line in code_lines(path).items()
        if re.search(pattern, line)
    ]
    assert not strays, "\n".join([f"{pattern} belongs in {allowed or 'no file'}", *strays])


def test_a_pickle_is_read_as_plain_tensors_or_not_at_all() -> None:
    for path in SOURCES:
        for number, line in code_lines(path).items():
            if "torch.load(" in line:
                assert "weights_only=True" in line, f"{relative(path)}:{number}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_is_one_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_says_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no module docstring"
    assert path.stem not in {"utils", "common", "misc", "helpers", "base", "core"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_code_is_ascii(path: Path) -> None:
    """Data in strings may be anything; a non-ASCII character elsewhere is a look-alike or an ornament."""
    for number, line in code_lines(path).items():
        assert re.sub(r"([\"']).*?\1", "", line).isascii(), f"line {number}"
    assert "".join(comments(path)).isascii()


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_parameter_is_named_const(path: Path) -> None:
    """AOTInductor emits invalid C++ for one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Attribute) and node.attr == "const"), f"line {node.lineno}"


def test_shapes_can_be_checked() -> None:
    """Annotations that are strings can't be."""
    for name in ("models", "losses", "augment", "evaluation"):
        for path in [*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/*.py")]:
            assert "from __future__ import annotations" not in path.read_text(encoding="utf-8"), relative(path)


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w./~$}])/(?:home|root|Users|work)/[\w.-]+")
    strays = []
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".tar", ".zip"} or path == Path(__file__):
            continue
        for match in pattern.finditer(path.read_bytes()):
            strays.append(f"{path.relative_to(ROOT)}: {match.group().decode()}")
    assert not strays, "\n".join(strays)


def test_a_todo_names_its_issue() -> None:
    for path in SOURCES:
        for comment in comments(path):
            assert "TODO" not in comment or re.search(r"TODO\(#\d+\)", comment), f"{relative(path)}: {comment}"


# docs/paper.md


def paper_rows() -> list[list[str]]:
    """The cells of every table row of docs/paper.md: section, statement, symbol, file, test, status."""
    rows, before = [], ""
    for line in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").splitlines():
        assert not line.startswith("|") or before.startswith("|") or "section" in line, f"outside of a table: {line}"
        before = line
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("|") and not set(line) <= set("|- :") and cells[0] != "section":
            rows.append(cells)
    return rows


def tagged() -> list[tuple[str, str]]:
    """Tags in comments and in docstrings."""
    in_comments = [(p, comment) for p in SOURCES for comment in comments(p) if comment.startswith(TAGS)]
    tag = re.compile(rf"(?:{'|'.join(TAGS)}) .*", re.DOTALL)
    found = [(p, tag.search(text)) for p in SOURCES for text in docstrings(p)]
    return [(relative(p), text) for p, text in [*in_comments, *((p, " ".join(m[0].split())) for p, m in found if m)]]


def docstrings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]


@cache
def defined(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, Class.method, Class.field and module constants."""
    names: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return names


def test_paper_rows_are_whole() -> None:
    for row in paper_rows():
        assert len(row) == 6, row
        assert row[5] in {"done", "deviation", "unstated", "later"}, row
        assert row[5] == "later" or (row[2] and row[3] and row[4]), row


def test_every_symbol_in_the_paper_table_exists() -> None:
    for _, statement, symbols, file, tests, status in paper_rows():
        if status == "later":
            continue
        source = PACKAGE / file.strip("`")
        assert source.is_file(), f"{statement}: no file {file}"
        for symbol in re.findall(r"`([^`]+)`", symbols):
            assert symbol in defined(source), f"{statement}: {file} defines no {symbol}"
        for test in re.findall(r"`([^`]+)`", tests):
            name, _, function = test.partition("::")
            path = ROOT / "tests" / name
            assert path.is_file(), f"{statement}: no test {test}"
            if function:
                assert function in defined(path), f"{statement}: no test {test}"


def test_every_tag_in_the_code_is_in_the_paper_table() -> None:
    """A tag's subject (up to its first `;`, `:`, `(` or full stop) stands in a row of its file."""
    rows = [(row[3].strip("`"), row[1]) for row in paper_rows()]
    missing = [
        f"{file}: # {subject}"
        for file, comment in tagged()
        for subject in [re.split(r"[;:(]|\.(?:\s|$)", comment.partition(": ")[2])[0].strip()]
        if not any(file == place and f"{comment.partition(':')[0]}: {subject}" in row for place, row in rows)
    ]
    assert not missing, "docs/paper.md has no row for\n" + "\n".join(missing)
