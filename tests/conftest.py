"""What every test may use: the real volumes where they are, and numbers that do not wander."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT and MR volumes; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("HEPALIGN_REAL_DATA")
    if not folder:
        pytest.skip("HEPALIGN_REAL_DATA is not set: no real volumes here")
    return Path(folder).resolve()
