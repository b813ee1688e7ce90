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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
def test_large_tensors_come_from_the_heap_once_told() -> None:
    done = subprocess.run([sys.executable, "-c", MAPPED], check=True, capture_output=True, text=True)
    before, after = (int(line) for line in done.stdout.split())
    assert before >= 100_000_000
    assert after == 0
