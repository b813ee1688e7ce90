from __future__ import annotations

import numpy as np
import pytest

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

GRID = Geometry.from_spacing((2, 3, 4), 1.0)


def test_data_and_grid_have_one_shape() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2, 4\) on a grid of shape \(2, 3, 4\)"):
        Volume(np.zeros((3, 2, 4)), GRID)


def test_as_float_copies_only_where_it_must() -> None:
    data = np.zeros(GRID.shape, np.float32)
    assert Volume(data, GRID).as_float() is data
    assert Volume(data.astype(np.int16), GRID).as_float().dtype == np.float32
    flipped = Volume(data[::-1], GRID).as_float()
    assert flipped.flags.c_contiguous


def test_masks_and_labels_are_what_lies_above_one_half() -> None:
    labels = Volume(np.arange(24).reshape(GRID.shape), GRID)
    assert labels.as_mask().sum() == 23
    assert labels.with_data(labels.data > 20).as_mask().sum() == 3
