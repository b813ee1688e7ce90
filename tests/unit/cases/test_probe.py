"""Coarse probe masks: shapes on any grid, refusals, and finding needles."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepalign.cases.probe import (
    box_mask,
    check_probe_mask,
    parse_probe_mask,
    polygon_mask,
    read_probe_mask,
    voxel_mask,
)
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import coarse_body_mask
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume

GRID = Geometry.from_spacing((40, 36, 20), (4.0, 4.0, 5.0), origin_mm=(-80, -72, -50))


def _patient() -> Volume:
    points = GRID.grid_mm()
    return Volume(np.where(np.hypot(points[..., 0], points[..., 1]) < 60, 40, -1000).astype(np.int16), GRID)


def test_a_box_holds_the_voxels_between_its_corners() -> None:
    mask = box_mask(np.array([-10.0, -10, -10]), np.array([10.0, 10, 10]), GRID)
    points = GRID.grid_mm()[mask.as_mask()]
    assert len(points) == 5 * 5 * 5
    assert np.abs(points).max() <= 10


def test_a_box_is_the_same_place_on_a_turned_grid() -> None:
    turned = Geometry.from_spacing(
        (36, 40, 20), 4.0, origin_mm=(80, -80, -50), direction=[[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    )
    low, high = np.array([-11.0, 3, -9]), np.array([13.0, 27, 15])
    inside = turned.grid_mm()[box_mask(low, high, turned).as_mask()]
    assert len(inside) > 50
    assert (inside >= low).all()
    assert (inside <= high).all()


def test_a_polygon_has_its_area_and_height() -> None:
    fine = Geometry.from_spacing((100, 100, 10), 1.0, origin_mm=(-50, -50, -5))
    triangle = np.array([[-40.0, -40], [40, -40], [-40, 40]])
    mask = polygon_mask(triangle, (-2.0, 2.0), fine).as_mask()
    assert mask[:, :, 5].sum() == pytest.approx(3200, rel=0.03)
    assert mask.any(axis=(0, 1)).sum() == 5


def test_a_polygon_that_is_not_convex_leaves_its_bay_out() -> None:
    fine = Geometry.from_spacing((60, 60, 3), 1.0, origin_mm=(-30, -30, -1))
    bay = np.array([[-20.0, -20], [20, -20], [20, 20], [0, -10], [-20, 20]])
    mask = polygon_mask(bay, (0.0, 0.0), fine).as_mask()
    assert not mask[30, 45, 1]
    assert mask[30, 15, 1]


def _in_polygon(x: float, y: float, polygon: np.ndarray) -> bool:
    inside = False
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            inside = not inside
    return inside


@pytest.mark.parametrize("seed", range(12))
def test_shapes_on_oblique_grids_hold_what_the_whole_grid_tells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if seed % 3 else np.eye(3)[rng.permutation(3)]
    shape = (int(rng.integers(9, 15)), int(rng.integers(9, 15)), int(rng.integers(1, 9)))
    grid = Geometry.from_spacing(shape, rng.integers(2, 6, 3) / 2, origin_mm=rng.integers(-20, 5, 3), direction=turn)
    points = grid.grid_mm()
    ends = points.reshape(-1, 3)[rng.integers(points.size // 3, size=2)]
    # faces through voxel centres at times, and corners far out of the grid
    ends = np.sort(ends + rng.choice([0.0, 0.3, 1e3]) * np.array([[-1.0], [1.0]]), axis=0)
    inside = ((points >= ends[0]) & (points <= ends[1])).all(axis=-1)
    np.testing.assert_array_equal(box_mask(*ends, grid).as_mask(), inside)
    polygon = grid.centre_mm[:2] + rng.normal(scale=8.0, size=(7, 2))
    z = np.sort(grid.centre_mm[2] + rng.normal(scale=4.0, size=2))
    thick = 0.5 * np.abs(grid.affine[2, :3]).max()
    inside = (points[..., 2] >= z[0] - thick) & (points[..., 2] <= z[1] + thick)
    inside &= np.array([_in_polygon(x, y, polygon) for x, y in points[..., :2].reshape(-1, 2)]).reshape(shape)
    np.testing.assert_array_equal(polygon_mask(polygon, (z[0], z[1]), grid).as_mask(), inside)


def test_shapes_need_no_positions_of_the_whole_image() -> None:
    large = Geometry.from_spacing((160, 160, 60), 1.0)
    box = {"kind": "box", "low_mm": [10, 10, 10], "high_mm": [30, 30, 30]}
    polygon = {"kind": "polygon", "points_mm": [[20, 20], [40, 20], [30, 40]], "z_mm": [20, 21]}
    tracemalloc.start()
    mask = parse_probe_mask({"shapes": [box, polygon]}, large)
    moved = Volume(mask.as_mask(), Geometry.from_spacing(large.shape, 1.0, origin_mm=(0.4, 0, 0)))
    voxel_mask(moved, Geometry.from_spacing((40, 40, 40), 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * mask.data.size


def test_json_shapes_are_united() -> None:
    box = {"kind": "box", "low_mm": [-10, -10, -10], "high_mm": [10, 10, 10]}
    polygon = {"kind": "polygon", "points_mm": [[20, 20], [40, 20], [30, 40]], "z_mm": [5, -5]}
    both = parse_probe_mask(json.dumps({"shapes": [box, polygon]}), GRID).as_mask()
    apart = parse_probe_mask(box, GRID).as_mask() | parse_probe_mask(polygon, GRID).as_mask()
    np.testing.assert_array_equal(both, apart)
    assert both.sum() > 125


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{",
        '{"kind": "sphere"}',
        '{"shapes": []}',
        '{"shapes": [3]}',
        '{"kind": "box", "low_mm": [0, 0], "high_mm": [1, 1, 1]}',
        '{"kind": "box", "low_mm": [0, 0, 0], "high_mm": [0, 1, 1]}',
        '{"kind": "box", "low_mm": [0, 0, "x"], "high_mm": [0, 1, 1]}',
        '{"kind": "box", "low_mm": [0, 0, NaN], "high_mm": [1, 1, 1]}',
        '{"kind": "polygon", "points_mm": [[0, 0], [1, 1]], "z_mm": [0, 1]}',
        '{"kind": "polygon", "points_mm": [[0, 0], [Infinity, 1], [3, 4]], "z_mm": [0, 1]}',
        '{"kind": "polygon", "points_mm": [[0, 0], [10, 10], [10, 0], [0, 10]], "z_mm": [0, 1]}',
        "[" * 100000,
    ],
)
def test_documents_that_are_no_mask_are_refused(document: str) -> None:
    with pytest.raises(BadInputError) as refused:
        parse_probe_mask(document, GRID, name="mask.json")
    assert refused.value.code == "bad_probe_mask"
    assert refused.value.message.startswith("mask.json")


def test_a_polygon_may_be_closed_and_repeat_a_point() -> None:
    open_ = [[-20, -20], [20, -20], [20, 20], [-20, 20]]
    expected = parse_probe_mask({"kind": "polygon", "points_mm": open_, "z_mm": [0, 5]}, GRID).as_mask()
    assert expected.any()
    for points in ([*open_, open_[0]], [open_[0], *open_, open_[0]], [*open_[:2], *open_[1:]]):
        closed = parse_probe_mask({"kind": "polygon", "points_mm": points, "z_mm": [0, 5]}, GRID).as_mask()
        np.testing.assert_array_equal(closed, expected)
    with pytest.raises(BadInputError, match="3 to"):
        parse_probe_mask({"kind": "polygon", "points_mm": [[0, 0], [9, 9], [0, 0]], "z_mm": [0, 5]}, GRID)


KEYS = st.sampled_from(["kind", "low_mm", "high_mm", "points_mm", "z_mm", "shapes"])
LEAVES = st.none() | st.floats() | st.sampled_from(["box", "polygon", ""])
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_any_json_is_a_mask_or_refused(document: object) -> None:
    code = "bad_probe_mask"
    try:
        parse_probe_mask(json.dumps(document), GRID)
    except BadInputError as refused:
        code = refused.code
    assert code == "bad_probe_mask"


def test_a_mask_of_nothing_and_a_mask_of_everything_are_refused() -> None:
    patient = _patient()
    for mask, code in (
        (np.zeros(GRID.shape, bool), "empty_probe_mask"),
        (np.ones(GRID.shape, bool), "probe_mask_too_large"),
    ):
        with pytest.raises(BadInputError) as refused:
            check_probe_mask(Volume(mask, GRID), patient)
        assert refused.value.code == code
    check_probe_mask(box_mask(np.full(3, -15.0), np.full(3, 15.0), GRID), patient)


def test_voxels_on_another_grid_are_resampled_and_said_so() -> None:
    fine = Geometry.from_spacing((80, 72, 50), 2.0, origin_mm=(-80, -72, -50))
    drawn = box_mask(np.full(3, -12.0), np.full(3, 12.0), fine)
    warnings: list[str] = []
    mask = voxel_mask(drawn, GRID, warnings)
    assert mask.geometry.same_grid(GRID)
    expected = box_mask(np.full(3, -12.0), np.full(3, 12.0), GRID).as_mask()
    assert (mask.as_mask() ^ expected).sum() < 0.25 * expected.sum()
    assert len(warnings) == 1


def test_voxels_in_another_frame_are_refused() -> None:
    far = Geometry.from_spacing((20, 20, 20), 4.0, origin_mm=(5000, 0, 0))
    with pytest.raises(BadInputError) as refused:
        voxel_mask(Volume(np.ones(far.shape, bool), far), GRID)
    assert refused.value.code == "frame_mismatch"


def test_a_mask_file_is_json_or_nifti(tmp_path: Path) -> None:
    patient = _patient()
    box = {"kind": "box", "low_mm": [-12, -12, -12], "high_mm": [12, 12, 12]}
    (tmp_path / "mask.json").write_text(json.dumps(box), encoding="utf-8")
    write_nifti(parse_probe_mask(box, GRID), tmp_path / "mask.nii.gz")
    body = coarse_body_mask(patient)
    from_json = read_probe_mask(tmp_path / "mask.json", GRID, body)
    from_nifti = read_probe_mask(tmp_path / "mask.nii.gz", GRID, body)
    np.testing.assert_array_equal(from_json.as_mask(), from_nifti.as_mask())
