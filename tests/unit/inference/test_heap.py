"""Freed memory is used again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

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

# KiB on huge pages while a tensor of 100 MB lives.
HUGE = """
import hepalign, torch
tensor = torch.ones(25_000_000)
print(sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""
TOLD_ELSEWHERE = {"THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES"}
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def numbers(script: str, **told: str) -> list[int]:
    """What a script prints in a process of its own, with the C library's own defaults."""
    surroundings = {name: value for name, value in os.environ.items() if name not in TOLD_ELSEWHERE} | told
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=surroundings)
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


@pytest.mark.skipif(
    not (HUGE_PAGES.exists() and "[madvise]" in HUGE_PAGES.read_text(encoding="utf-8")),
    reason="this kernel gives huge pages to all or to none, whoever asks",
)
def test_large_tensors_lie_on_huge_pages_unless_told_otherwise() -> None:
    assert numbers(HUGE)[0] >= 50_000
    assert numbers(HUGE, THP_MEM_ALLOC_ENABLE="0") == [0]
