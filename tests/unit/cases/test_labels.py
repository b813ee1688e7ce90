from __future__ import annotations

import numpy as np
import pytest

from hepalign.cases.labels import check_overlap, label_onto, numbered_tumours
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

IMAGE = Volume(np.zeros((20, 20, 20), np.float32), Geometry.from_spacing((20, 20, 20), 2.0))


def block(geometry: Geometry, low_mm: float, high_mm: float, value: float = 1) -> Volume:
    grid = geometry.grid_mm()
    inside = ((grid >= low_mm) & (grid <= high_mm)).all(axis=-1)
    return Volume(np.where(inside, value, 0), geometry)


def test_a_label_on_its_image_keeps_every_voxel() -> None:
    label = Volume(np.random.default_rng(0).integers(0, 5, (20, 20, 20)).astype(float), IMAGE.geometry)
    report: list[str] = []
    np.testing.assert_array_equal(label_onto(label, IMAGE, name="pct_tumour", report=report).data, label.data)
    assert report == []


@pytest.mark.parametrize("value", [0.5, -1, np.nan, 1e6])
def test_what_is_no_label(value: float) -> None:
    with pytest.raises(BadInputError, match=r"^pct_liver: ") as error:
        label_onto(block(IMAGE.geometry, 4, 20, value), IMAGE, name="pct_liver")
    assert error.value.code == "bad_label"


def test_large_values_are_kept() -> None:
    assert label_onto(block(IMAGE.geometry, 4, 20, 300), IMAGE, name="x").data.max() == 300


def test_a_label_too_small_for_the_grid_is_reported() -> None:
    fine = Geometry.from_spacing((80, 80, 80), 0.5)
    data = block(fine, 4, 20).data
    data[45, 45, 45] = 2
    report: list[str] = []
    moved = label_onto(Volume(data, fine), IMAGE, name="pct_tumour", report=report)
    assert set(np.unique(moved.data)) == {0, 1}
    assert any("label 2 vanished" in line for line in report)


def test_separate_tumours_are_numbered_by_size() -> None:
    data = np.zeros((20, 20, 20), bool)
    data[1:3, 1:3, 1:3] = data[8:14, 8:14, 8:14] = True
    numbered = numbered_tumours(Volume(data, IMAGE.geometry)).data
    assert numbered[10, 10, 10] == 1
    assert numbered[1, 1, 1] == 2
    two = Volume(np.where(data, numbered * 3, 0), IMAGE.geometry)
    assert numbered_tumours(two) is two


def test_touching_images_do_not_overlap() -> None:
    beside = Geometry.from_spacing((20, 20, 20), 2.0, origin_mm=(37.5, 0, 0))
    with pytest.raises(BadInputError) as error:
        check_overlap(IMAGE.geometry, beside)
    assert error.value.code == "no_overlap"
    check_overlap(IMAGE.geometry, Geometry.from_spacing((20, 20, 20), 2.0, origin_mm=(20, 0, 0)))


def test_a_short_scan_inside_a_long_one_overlaps() -> None:
    check_overlap(
        Geometry.from_spacing((100, 100, 100), 4.0), Geometry.from_spacing((20, 20, 5), 2.0, origin_mm=(50,) * 3)
    )
