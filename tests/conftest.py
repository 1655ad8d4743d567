"""What every test shares: shapes checked at each call, few threads, accelerator tests that skip themselves.

The hook must be in place before anything imports the package, so it stands first. GIGAGAN_SHAPES=0 turns it off
(torch.compile can't trace checked functions).
"""

import os

import pytest

CHECKED = ["gigagan.models", "gigagan.losses", "gigagan.augment", "gigagan.evaluation"]

if os.environ.get("GIGAGAN_SHAPES", "1") == "1":
    from jaxtyping import install_import_hook

    install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch

torch.set_num_threads(1)


def _accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _accelerator():
        return
    skip = pytest.mark.skip(reason="needs an accelerator")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
