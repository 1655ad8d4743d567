"""What the program asks of glibc's allocator: big buffers stay with the process, unless it is told to give them back.

By default glibc returns each big buffer to the kernel and pays page faults for it again. A training step allocates and
frees the same feature maps over and over; above 32 MB glibc maps and unmaps every one.
"""

import ctypes
import sys

# malloc.h
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

MIB = 1 << 20


def keep_memory() -> bool:
    """Tell glibc's malloc to reuse big buffers; True if it was told. Elsewhere nothing happens.

    For the program only: a library must not change its host's allocator.
    """
    if (libc := _glibc()) is None:
        return False
    # Old glibc takes no more than 32 MiB here and answers 0.
    sizes = (1 << exponent for exponent in range(30, 24, -1))
    told = any(libc.mallopt(M_MMAP_THRESHOLD, size) == 1 for size in sizes)
    return told and libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1) == 1 and libc.mallopt(M_TOP_PAD, 64 * MIB) == 1


def return_memory() -> bool:
    """Give what is free back to the kernel; True if there was some. Elsewhere than on glibc nothing happens.

    Between parts of a long work whose buffers differ in size, which would leave gaps that none of them fills.
    """
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
