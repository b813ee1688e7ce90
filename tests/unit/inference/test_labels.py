from __future__ import annotations

import numpy as np
import pytest

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.labels import checked_labels, separate_tumours, warp_labels
from hepalign.transform.displacement import DisplacementField

GEOMETRY = Geometry.from_spacing((12, 12, 12), 2.0)


def mask(*boxes: tuple[slice, slice, slice], value: int = 1) -> Volume:
    data = np.zeros(GEOMETRY.shape, np.uint8)
    for number, box in enumerate(boxes):
        data[box] = value + number if value > 1 else 1
    return Volume(data, GEOMETRY)


FIRST = (slice(1, 4), slice(1, 4), slice(1, 4))
SECOND = (slice(7, 10), slice(7, 10), slice(7, 10))


def shift(voxels: int) -> DisplacementField:
    vectors = np.zeros((*GEOMETRY.shape, 3), np.float32)
    vectors[..., 0] = 2.0 * voxels
    return DisplacementField(vectors, GEOMETRY)


def test_several_tumours_stay_apart_by_value_and_by_piece() -> None:
    assert len(separate_tumours(mask(FIRST, SECOND))) == 2
    touching = (slice(4, 6), slice(1, 4), slice(1, 4))
    assert len(separate_tumours(mask(FIRST, touching, value=2))) == 2


def test_labels_move_with_their_images_field() -> None:
    carried = warp_labels(
        {"pct_liver": mask((slice(1, 11),) * 3), "pmr_tumour": mask(FIRST, SECOND)}, shift(0), shift(1)
    )
    assert carried is not None
    assert dict(carried.names) == {1: "liver", 2: "tumour 1", 3: "tumour 2"}
    # warped(x) = moving(x + u): content moves against u
    assert np.argwhere(carried.volume.data == 2).min(0).tolist() == [0, 1, 1]
    assert carried.mask("liver").sum() == (carried.volume.data == 1).sum()


def test_the_pct_wins_where_both_images_are_labelled() -> None:
    carried = warp_labels({"pct_tumour": mask(SECOND), "pmr_tumour": mask(FIRST)}, shift(0), shift(0))
    assert carried is not None
    np.testing.assert_array_equal(carried.volume.data > 0, mask(SECOND).as_mask())


def test_names_with_colons_are_taken_and_unknown_ones_refused() -> None:
    assert list(checked_labels({"pct:liver": mask(FIRST)})) == ["pct_liver"]
    assert warp_labels({}, shift(0), None) is None
    with pytest.raises(BadInputError) as caught:
        checked_labels({"spleen": mask(FIRST)})
    assert caught.value.code == "unknown_label"


def test_a_speckled_mask_is_refused_before_anything_is_planned() -> None:
    data = np.zeros((32, 32, 4), np.uint8)
    data[::2, ::2, 0] = 1
    specks = Volume(data, Geometry.from_spacing(data.shape, 2.0))
    assert len(separate_tumours(specks)) == 256
    with pytest.raises(BadInputError, match="pmr:tumour is in more than 254 pieces") as caught:
        checked_labels({"pmr:tumour": specks})
    assert caught.value.code == "bad_label"
    assert list(checked_labels({"pmr:tumour": specks.with_data(np.zeros_like(data))})) == ["pmr_tumour"]
