from __future__ import annotations

import numpy as np

from hepalign.cases.placing import covering_grid, mask_centre_mm, placed_grid
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

SCAN = Geometry.from_spacing((100, 80, 60), (2, 2, 5), origin_mm=(-100, -80, 40))


def block(low_mm: tuple[float, float, float], high_mm: tuple[float, float, float]) -> Volume:
    grid = SCAN.grid_mm()
    return Volume(((grid >= low_mm) & (grid <= high_mm)).all(axis=-1), SCAN)


def edges_mm(grid: Geometry) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Outer faces of an axis-aligned grid's voxels."""
    half = np.asarray(grid.spacing_mm) / 2
    return grid.corners_mm().min(axis=0) - half, grid.corners_mm().max(axis=0) + half


def test_a_covering_grid_holds_every_voxel_of_any_orientation() -> None:
    angle = 0.3
    turn = np.array([[0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)], [-1, 0, 0]])
    oblique = Geometry.from_spacing((20, 30, 10), (1, 1.5, 6), origin_mm=(7, 8, 9), direction=turn)
    grid = covering_grid(oblique, 2.0)
    assert (edges_mm(grid)[0] <= oblique.corners_mm().min(axis=0)).all()
    assert (edges_mm(grid)[1] >= oblique.corners_mm().max(axis=0)).all()
    np.testing.assert_array_equal(grid.direction, np.eye(3))
    assert grid.spacing_mm == (2.0, 2.0, 2.0)


def test_a_covering_grid_of_an_isotropic_scan_is_the_scan() -> None:
    scan = Geometry.from_spacing((10, 12, 14), 3.0, origin_mm=(1, 2, 3))
    assert covering_grid(scan, 3.0).same_grid(scan)


def test_the_body_sets_x_and_y_and_the_liver_z() -> None:
    grid = placed_grid(
        SCAN, (40, 40, 20), 2.0, body=block((-40, -30, 50), (20, 30, 330)), liver=block((0, 0, 200), (20, 20, 260))
    )
    np.testing.assert_allclose(grid.centre_mm, (-10, 0, 230), atol=1.5)


def test_a_liver_at_the_side_stays_whole_in_a_narrow_grid() -> None:
    body, liver = block((-90, -60, 50), (90, 60, 330)), block((30, -40, 150), (85, 30, 250))
    grid = placed_grid(SCAN, (50, 40, 60), 2.0, body=body, liver=liver)
    assert grid.contains(liver.geometry.index_to_world(np.argwhere(liver.data))).all()
    # one that does not fit leaves the grid on the body
    np.testing.assert_allclose(placed_grid(SCAN, (20, 40, 60), 2.0, body=body, liver=liver).centre_mm[0], 0, atol=1.5)


def test_a_grid_stays_inside_a_longer_scan() -> None:
    grid = placed_grid(SCAN, (40, 40, 20), 2.0, liver=block((0, 0, 320), (20, 20, 335)))
    assert (edges_mm(grid)[0] >= edges_mm(SCAN)[0]).all()
    assert (edges_mm(grid)[1] <= edges_mm(SCAN)[1]).all()


def test_a_grid_larger_than_the_scan_is_centred_on_it() -> None:
    grid = placed_grid(SCAN, (200, 200, 200), 2.0, liver=block((0, 0, 320), (20, 20, 335)))
    np.testing.assert_allclose(grid.centre_mm, SCAN.centre_mm, atol=1e-9)


def test_an_empty_mask_places_nothing() -> None:
    empty = block((900, 900, 900), (901, 901, 901))
    assert mask_centre_mm(empty) is None
    grid = placed_grid(SCAN, (40, 40, 20), 2.0, body=empty, liver=empty)
    np.testing.assert_allclose(grid.centre_mm, SCAN.centre_mm, atol=1e-9)
