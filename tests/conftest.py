"""What every test shares: shapes checked at each call, few threads, accelerator tests that skip themselves, goldens.

The hook must be in place before anything imports the package. GIGAGAN_SHAPES=0 turns it off (torch.compile can't
trace checked functions).
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = ["gigagan.models", "gigagan.losses", "gigagan.augment", "gigagan.evaluation"]

if os.environ.get("GIGAGAN_SHAPES", "1") == "1":
    install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)

# The same examples in every run, however busy the machine.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-goldens", action="store_true", help="Rewrite stored texts instead of comparing.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip themselves where there is no accelerator."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return
    skip = pytest.mark.skip(reason="needs an accelerator")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a stored file; `make goldens` stores it."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--write-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run make goldens"
        assert text == path.read_text(encoding="utf-8"), f"{path} is stale; run make goldens"

    return check
