"""What every test shares: shapes checked at each call, few threads, accelerator tests that skip themselves.

The hook must be in place before anything imports the package. GIGAGAN_SHAPES=0 turns it off (torch.compile can't
trace checked functions).
"""

import os

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip themselves where there is no accelerator."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return
    skip = pytest.mark.skip(reason="needs an accelerator")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
