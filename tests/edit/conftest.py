"""The commands on a tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gigagan import cli
from gigagan.models.frozen import HashedText
from gigagan.pipeline import Pipeline
from tests.edit.tried import CapSys, Run


@pytest.fixture(scope="module")
def model(tiny_networks: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("models") / "model"
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12)).save_pretrained(path)


@pytest.fixture(scope="module")
def pipe(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> Run:
    """Runs a command on the tiny model, returns the lines of its output."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str, code: int = 0) -> list[str]:
        assert cli.run([*args, "--model", str(model)]) == code
        out, err = capsys.readouterr()
        assert code == 0 or len(err.splitlines()) == 1, err
        return out.splitlines() if code == 0 else [err]

    return command
