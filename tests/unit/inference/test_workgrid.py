from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.workgrid import (
    Axes,
    canonical,
    coarsened,
    ct_work_spacing_mm,
    full_field,
    mr_work_spacing_mm,
    view_scale,
    work_geometry,
)
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import rotation

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def oriented(order: tuple[int, ...], signs: tuple[int, ...]) -> Geometry:
    direction = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        direction[world, axis] = sign
    return Geometry.from_spacing((4, 5, 6), (2.0, 3.0, 4.0), origin_mm=(7, -8, 9), direction=direction)


def test_the_smaller_field_of_view_says_how_finely_to_look() -> None:
    trunk, limb, speck = (Geometry.from_spacing((40, 40, 40), spacing_mm) for spacing_mm in (9.0, 4.4, 0.5))
    assert view_scale(trunk, trunk, 0.4) == 1
    assert view_scale(trunk, limb, 0.4) == view_scale(limb, trunk, 0.4) == pytest.approx(176 / 220)
    assert view_scale(limb, limb, 0.9) == 0.9
    assert view_scale(trunk, speck, 0.4) == 0.4
    assert mr_work_spacing_mm(trunk, trunk) == 2.8
    assert mr_work_spacing_mm(trunk, limb) == 2.8, "the CT's own voxels are no finer"
    assert mr_work_spacing_mm(limb, speck) == pytest.approx(0.7 * 2.8)
    assert mr_work_spacing_mm(speck, Geometry.from_spacing((60, 60, 60), 2.4)) == pytest.approx(2.4)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_canonical_order_keeps_every_voxel_at_its_place_and_undo_brings_it_back(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    geometry = oriented(order, signs)
    volume = Volume(np.arange(120.0).reshape(4, 5, 6), geometry)
    ordered = canonical(volume)
    np.testing.assert_allclose(ordered.geometry.direction, np.eye(3), atol=1e-12)
    for index in ((0, 0, 0), (3, 1, 2), (1, 4, 5)):
        there = np.rint(ordered.geometry.world_to_index(geometry.index_to_world(index))).astype(int)
        assert ordered.data[tuple(there)] == volume.data[index]
    back = Axes.of(geometry).undo(torch.from_numpy(ordered.data.copy())[None])
    np.testing.assert_array_equal(back[0].numpy(), volume.data)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_a_residual_field_returns_to_the_fixed_images_own_grid(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    fixed = oriented(order, signs)
    work = Axes.of(fixed).geometry(fixed)
    # a residual that is constant in the world: one voxel of the work grid along its second axis
    residual = torch.zeros(1, 3, *work.shape)
    residual[:, 1] = 1.0
    matrix = rotation((5, -3, 8), (1, 2, 3))
    matrix[:3, 3] += (4, 5, 6)
    moved = fixed.grid_mm() + work.affine[:3, 1]
    expected = moved @ matrix[:3, :3].T + matrix[:3, 3] - fixed.grid_mm()
    np.testing.assert_allclose(full_field(residual, matrix, work, fixed).vectors, expected, atol=1e-4)


def test_no_residual_gives_the_linear_map() -> None:
    fixed = Geometry.from_spacing((6, 5, 4), 3.0, direction=rotation((10, 20, 30))[:3, :3])
    matrix = rotation((3, 2, 1), (5, 5, 5))
    made = full_field(torch.zeros(1, 3, 3, 3, 2), matrix, work_geometry(fixed).with_shape((3, 3, 2)), fixed)
    np.testing.assert_allclose(made.vectors, DisplacementField.from_linear(matrix, fixed).vectors, atol=1e-4)


def test_the_work_grid_covers_the_same_box_in_multiples_of_sixteen() -> None:
    fixed = Geometry.from_spacing((256, 256, 128), (1.4, 1.4, 2.0))
    work = work_geometry(fixed)
    assert work.shape == (128, 128, 96)
    np.testing.assert_allclose(work.extent_mm, fixed.extent_mm)
    huge = work_geometry(Geometry.from_spacing((512, 512, 2000), 1.0))
    assert np.prod(huge.shape) < 4_000_000


@pytest.mark.parametrize(
    ("spacing_mm", "expected_mm"), [((0.8, 0.8, 5.0), 2.8), (2.8, 2.8), (3.6, 3.132), (3.8, 3.3), (6.0, 3.3)]
)
def test_cts_are_not_matched_much_finer_than_they_are(spacing_mm: float, expected_mm: float) -> None:
    assert ct_work_spacing_mm(Geometry.from_spacing((64, 64, 64), spacing_mm)) == pytest.approx(expected_mm)


def test_coarsening_averages() -> None:
    volume = Volume(np.arange(64, dtype=np.float32).reshape(4, 4, 4), Geometry.from_spacing((4, 4, 4), 1.0))
    coarse = coarsened(volume, 2.0)
    assert coarse.geometry.shape == (2, 2, 2)
    assert coarse.data[0, 0, 0] == pytest.approx(volume.data[:2, :2, :2].mean())
    np.testing.assert_allclose(coarse.geometry.origin_mm, (0.5, 0.5, 0.5))
