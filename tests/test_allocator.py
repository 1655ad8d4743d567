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
    told = faults("from gigagan.allocator import keep_memory; assert keep_memory()")
    untold = faults("import gigagan.cli, gigagan.allocator")
    assert told < 100
    assert untold > 10 * max(told, 1)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from gigagan import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()
    assert not allocator.return_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these knobs")
def test_what_is_free_is_given_back() -> None:
    """Also where it was told to be kept: of 64 MiB in small pieces under a last one in use."""
    code = """
from gigagan.allocator import keep_memory, return_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
assert keep_memory()
pieces = [bytearray(1 << 20) for _ in range(64)]
last = bytearray(1 << 20)
del pieces
before = resident()
assert return_memory()
assert before - resident() > 32 << 20
"""
    subprocess.run([sys.executable, "-c", code], check=True)
