"""A field's continuation outside its grid, as the note that rides along in its file."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError

KEY = "hepalign_linear_ras"
BEGINNING = b'{"' + KEY.encode()


def note_of(linear: NDArray[np.float64]) -> bytes:
    """The note of a 4 x 4 matrix."""
    return json.dumps({KEY: linear.tolist()}).encode()


def linear_of(note: bytes, name: str) -> NDArray[np.float64]:
    """The 4 x 4 matrix of a note.

    Raises:
        BadInputError: `bad_transform`, naming the file `name`.
    """
    try:
        matrix = np.array(json.loads(note)[KEY], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{name}: its linear part cannot be read", code="bad_transform") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise BadInputError(f"{name}: its linear part is no invertible 4 x 4 matrix", code="bad_transform")
    return matrix
