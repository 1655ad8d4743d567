"""How large a picture becomes."""

from dataclasses import dataclass

from gigagan.errors import DataError


@dataclass(frozen=True)
class Size:
    """How large a picture becomes."""

    scale: int
    """Power of two that the network makes."""
    width: int
    """In pixels, after that is brought to the size asked for."""
    height: int


def size_of(width: int, height: int, *, scale: int = 0, longest: int = 0) -> Size:
    """`scale` times as large, or with a longer side of `longest` px. Raises DataError where that isn't larger."""
    if scale:
        return Size(scale, width * scale, height * scale)
    side = max(width, height)
    if longest <= side:
        raise DataError(f"is {width} x {height} px already; a longer side of {longest} px isn't larger")
    needed = 1 << (-(-longest // side) - 1).bit_length()
    small = max(round(min(width, height) * longest / side), 1)
    return Size(needed, *((longest, small) if width >= height else (small, longest)))
