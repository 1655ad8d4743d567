"""A run that dies again and again is told from bad luck (row C5 of the fault matrix)."""

from pathlib import Path

import pytest

from gigagan.errors import GigaGANError
from gigagan.training.attempts import CRASHES, STANDSTILLS, Attempts


def dies(run_dir: Path, *, start: int, end: int) -> None:
    """A start from one number of images that dies at another."""
    attempts = Attempts(run_dir, start)
    for nimg in range(start, end + 1, 8):
        attempts.begins(nimg)


def test_three_deaths_at_one_step_are_no_bad_luck(tmp_path: Path) -> None:
    for start in (0, 8, 16)[:CRASHES]:
        dies(tmp_path, start=start, end=40)
    with pytest.raises(GigaGANError, match=r"died 3 times at the same step \(0\.040 kimg\)"):
        Attempts(tmp_path, 16)


def test_ten_deaths_between_two_states_are_none_either(tmp_path: Path) -> None:
    for n in range(STANDSTILLS):
        dies(tmp_path, start=8, end=16 + 8 * n)
    with pytest.raises(GigaGANError, match=r"died 10 times after 0\.008 kimg, before its next state was saved"):
        Attempts(tmp_path, 8)
    (tmp_path / "attempts.txt").unlink()
    Attempts(tmp_path, 8)


def test_deaths_of_a_run_that_comes_forward_are_bad_luck(tmp_path: Path) -> None:
    for n in range(3 * STANDSTILLS):
        dies(tmp_path, start=8 * (n // (STANDSTILLS - 1)), end=400 + 8 * n)
    Attempts(tmp_path, 8 * 4)


def test_a_run_that_ended_well_leaves_no_file(tmp_path: Path) -> None:
    Attempts(tmp_path, 0).ended()
    assert not (tmp_path / "attempts.txt").exists()
