"""The allocator is told once, by the program and not by the library."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
{setup}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def buffer():
    return bytearray(64 << 20)
buffer()
before = faults()
for _ in range(4):
    buffer()
print(faults() - before)
"""


def faults(setup: str) -> int:
    code = FAULTS.format(setup=setup)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these knobs")
def test_a_big_buffer_that_comes_again_costs_no_page_faults() -> None:
    """64 MiB are 16384 pages of 4 KiB; bytearray asks calloc, which then clears what it keeps."""
    told = faults("from gigagan.cli.allocator import keep_memory; assert keep_memory()")
    untold = faults("import gigagan.cli, gigagan.cli.allocator")
    assert told < 100
    assert untold > 10 * max(told, 1)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from gigagan.cli import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()
