"""What people write into the page's boxes."""

import re

from gigagan.errors import ConfigError
from gigagan.request import MAX_SEED

MAX_SEEDS = 1000


def lines(text: str) -> list[str]:
    """The lines that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_seed_list(text: str) -> list[int]:
    """Seeds of "3, 5, 8-11", in order, each once; of nothing none. Raises ConfigError for anything else."""
    seeds: dict[int, None] = {}
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_SEED or last - first >= MAX_SEEDS:
            raise ConfigError(f"{part.strip()[:40]!r} names no seeds; write 3, 5, 8-11")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)
