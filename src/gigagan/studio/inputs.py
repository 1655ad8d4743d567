"""What people write into the page's boxes."""

import re
from collections.abc import Sequence

from gigagan.errors import ConfigError, PromptError
from gigagan.request import MAX_SEED

MAX_SEEDS = 1000
MAX_CELLS = 128


def lines(text: str) -> list[str]:
    """The lines that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def filled(things: Sequence[str], styles: Sequence[str]) -> list[str]:
    """Each thing in each style, in the place of its {}.

    Raises PromptError where that can't be, ConfigError for more than MAX_CELLS.
    """
    if not things or not styles:
        raise PromptError("the table is empty; give at least one thing and one style")
    if bad := [style for style in styles if style.count("{}") != 1]:
        raise PromptError(f"{bad[0]!r} has no one place for the thing; write {{}} there: a flat icon of {{}}")
    if len(things) * len(styles) > MAX_CELLS:
        raise ConfigError(f"{len(things)} x {len(styles)} pictures are more than {MAX_CELLS}; give fewer")
    return [style.replace("{}", thing) for thing in things for style in styles]


def parse_seed_list(text: str) -> list[int]:
    """Seeds of "3, 5, 8-11", in order; of nothing none. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_SEED or len(seeds) + last - first >= MAX_SEEDS:
            raise ConfigError(f"{part.strip()[:40]!r} names no seeds; write 3, 5, 8-11")
        seeds += range(first, last + 1)
    return seeds
