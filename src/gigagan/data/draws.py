"""Random numbers that are functions of their names: the same wherever and in whatever order they are asked for."""

import hashlib


def draw(*name: object) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.sha256("\0".join(str(part) for part in name).encode()).digest()
    return int.from_bytes(digest[:6]) / 256**6  # 48 bits: exact in a float


def choose(count: int, *name: object) -> int:
    """An index below `count` that depends on the name alone."""
    return int(draw(*name) * count)
