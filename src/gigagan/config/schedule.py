"""Values that change while a run goes on."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from gigagan.config.networks import NonNegative, Positive

NUMBER, POINTS = "a number", "points"
Points = Annotated[tuple[tuple[NonNegative, NonNegative], ...], Tag(POINTS)]


def kind_of(value: Any) -> str:
    """Which of the two a value is meant to be, so that a mistake in it is told of that alone."""
    return POINTS if isinstance(value, list | tuple) else NUMBER


Schedule = Annotated[Annotated[NonNegative, Tag(NUMBER)] | Points, Discriminator(kind_of)]
"""A number, or points [kimg, value], straight between them and level before the first and after the last."""
Rate = Annotated[Annotated[Positive, Tag(NUMBER)] | Points, Discriminator(kind_of)]
"""The same, but a number alone is never 0."""


def check_points(name: str, schedule: Schedule) -> None:
    """Raises ValueError where there are no points, or their kimg don't rise."""
    if isinstance(schedule, tuple):
        kimgs = [kimg for kimg, _ in schedule]
        if not kimgs or kimgs != sorted(set(kimgs)):
            raise ValueError(f"{name} has the kimg {kimgs}; give [kimg, value] points with rising kimg")


def value_at(schedule: Schedule, kimg: float) -> float:
    """Of a schedule at a moment."""
    if not isinstance(schedule, tuple):
        return schedule
    (before, low), *_ = [point for point in schedule if point[0] <= kimg][-1:] or schedule[:1]
    (after, high), *_ = [point for point in schedule if point[0] > kimg][:1] or schedule[-1:]
    return low if after <= before else low + (high - low) * max(0.0, kimg - before) / (after - before)
