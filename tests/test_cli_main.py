"""The program's frame: help without torch, exit codes, one line for a mistake."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import gigagan
from gigagan import cli
from gigagan.errors import DataError

BUDGET_SEC = 0.5
"""CPU time of `gigagan --help`."""


def program(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gigagan", *args], capture_output=True, text=True, **kwargs)


def imported_after(code: str) -> set[str]:
    tail = "\nimport sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import gigagan",
        "import gigagan; dir(gigagan); gigagan.GigaGANError",
        "from gigagan import cli; assert cli.run(['--help']) == 0",
        "from gigagan import cli; assert cli.run(['config', 'emoji64']) == 0",
        "from gigagan import cli; assert cli.run(['config', 'emoji64', 'optim_G.lr=-1']) == 2",
        "from gigagan import cli; assert cli.run(['train', 'emoji46', '--run-dir', 'unwritten']) == 2",
    ],
)
def test_without_torch(code: str) -> None:
    assert "torch" not in imported_after(code)


def test_help_is_quick_and_lists_every_command() -> None:
    start = os.times()
    done = program("--help")
    end = os.times()
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout
    spent = end.children_user + end.children_system - start.children_user - start.children_system
    assert spent <= BUDGET_SEC, f"{spent:.2f} s of CPU"


def test_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"gigagan {gigagan.__version__}\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_says_the_same_in_the_list_and_for_itself(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == cli.COMMANDS[name][1]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["trian"], "no such command 'trian'; did you mean train? (gigagan --help)"),
        (["qqq"], "no such command 'qqq'; known: data, train, "),
        (["config"], "Missing argument 'PRESET'. (gigagan config --help)"),
        (["config", "emoji64", "--explian"], "No such option '--explian'. Did you mean"),
        (["config", "emoji46"], "emoji46: no such preset; did you mean emoji64?"),
        (["--frobnicate"], "No such option '--frobnicate'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("gigagan: ")
    assert line in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs the program with a command that raises."""

    def run(error: BaseException) -> int:
        @click.command()
        def boom() -> None:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "boom", boom, raising=False)
        monkeypatch.setattr(cli.cli, "lazy", {"boom": (f"{__name__}:boom", "")})
        return cli.run(["boom"])

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("x.tar: 3 bytes\nof 10"), 2, "gigagan: x.tar: 3 bytes of 10\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/0.png"),
            2,
            "gigagan: out/0.png: No space left on device\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "gigagan: out: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "gigagan: No space left on device\n"),
        (KeyboardInterrupt(), 130, "gigagan: interrupted\n"),
    ],
)
def test_what_each_error_becomes(
    failing: Callable[[BaseException], int],
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failing(error) == code
    assert capsys.readouterr().err.lstrip("\n") == line


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "Input/output error"), AssertionError("3")])
def test_a_bug_keeps_its_traceback(failing: Callable[[BaseException], int], error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_reader_that_stops_early_gets_silence(flags: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, *flags, "-m", "gigagan", "config", "emoji64"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_ctrl_c_is_one_line() -> None:
    """A real SIGINT to a real program."""
    code = (
        "import time, click; from gigagan import cli\n"
        "cli.cli.lazy = {'wait': ('__main__:wait', '')}\n"
        "@click.command()\n"
        "def wait(): print('ready', flush=True); time.sleep(60)\n"
        "cli.main(['wait'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(2)
        assert process.stderr.read().strip() == "gigagan: interrupted"
        assert process.wait(timeout=30) == 130


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_path_that_is_no_unicode_is_printed_as_its_bytes(tmp_path: Path) -> None:
    code = (
        "import sys, click; from gigagan import cli\n"
        "cli.cli.lazy = {'tell': ('__main__:tell', '')}\n"
        "@click.command()\n"
        "def tell(): print(sys.argv[1])\n"
        "cli.main(['tell'])"
    )
    path = os.fsencode(tmp_path) + b"/\xfcdir"
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code, path], capture_output=True, check=True)
    assert done.stdout == path + b"\n"
