"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest

# Bytes that malloc has mapped apart from its heap, while a tensor of 100 MB lives.
MAPPED = """
import ctypes, torch
from hepalign.inference.heap import reuse_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
def mapped():
    before = mallinfo2().hblkhd
    tensor = torch.empty(25_000_000)
    return mallinfo2().hblkhd - before
print(mapped())
reuse_freed_memory()
print(mapped())
"""

# By how much the heap shrinks when 200 MB at its end are freed: asked of malloc itself, as a tensor leaves small blocks
# behind it, which hide the end.
GIVEN_BACK = """
import ctypes
from hepalign.inference.heap import reuse_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc.argtypes = [ctypes.c_size_t]
reuse_freed_memory()
block = libc.malloc(200_000_000)
held = libc.mallinfo2().arena
libc.free(block)
print(held, held - libc.mallinfo2().arena)
"""


def numbers(script: str) -> list[int]:
    """What a script prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


glibc_alone = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")


@glibc_alone
def test_large_tensors_come_from_the_heap_once_told() -> None:
    before, after = numbers(MAPPED)
    assert before >= 100_000_000
    assert after == 0


@glibc_alone
def test_freed_memory_stays_with_the_heap_once_told() -> None:
    held, given_back = numbers(GIVEN_BACK)
    assert held >= 200_000_000
    assert given_back == 0
