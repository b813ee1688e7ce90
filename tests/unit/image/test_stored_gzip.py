"""Gzip streams of stored blocks: every reader reads them."""

from __future__ import annotations

import gzip
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hepalign.image.stored_gzip import StoredGzip


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (65535,), (65536, 3), (200_000, 348, 131_070)])
def test_what_was_written_comes_back(sizes: tuple[int, ...], tmp_path: Path) -> None:
    pieces = [np.random.default_rng(n).bytes(n) for n in sizes]
    out = io.BytesIO()
    with StoredGzip(out) as stream:
        for piece in pieces:
            assert stream.write(piece) == len(piece)
        assert stream.tell() == sum(sizes)
    assert gzip.decompress(out.getvalue()) == b"".join(pieces)
    path = tmp_path / "content.gz"
    path.write_bytes(out.getvalue())
    assert subprocess.run(["gzip", "-dc", path], capture_output=True, check=True).stdout == b"".join(pieces)


def test_seeking_forward_leaves_zeros_and_backward_is_refused() -> None:
    out = io.BytesIO()
    with StoredGzip(out) as stream:
        stream.write(b"header")
        assert stream.seek(10) == 10
        stream.write(b"voxels")
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(3)
    assert gzip.decompress(out.getvalue()) == b"header\0\0\0\0voxels"


def test_damage_is_seen() -> None:
    out = io.BytesIO()
    with StoredGzip(out) as stream:
        stream.write(b"a displacement field")
    damaged = out.getvalue().replace(b"field", b"fiend")
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(damaged)
