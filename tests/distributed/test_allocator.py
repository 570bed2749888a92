"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A large block is freed and asked for again: the second time its pages are there.
CODE = """
import ctypes, resource

{setting}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 64 << 20


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
"""


SETTING = "from clipx.distributed import runtime; assert runtime.keep_freed_memory()"


def second_faults(setting: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(setting=setting)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_a_block_that_was_freed_is_used_again_without_a_page_fault() -> None:
    assert second_faults(SETTING) < 10
    assert second_faults("") > 10
