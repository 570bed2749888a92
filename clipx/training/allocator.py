"""What the C library does with the memory of tensors that are no longer needed."""

from __future__ import annotations

import ctypes

# mallopt's names for them, malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the process's whole life. Returns whether that is so.

    By default it hands every large block back to the kernel and asks for it anew, each page cleared
    and mapped again: several hundred MiB a step, a twentieth of the time of a step on CPUs.
    """
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:  # another C library
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _TOP_PAD_BYTES))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
