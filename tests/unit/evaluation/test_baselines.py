"""Each peer, on a known warp of an oblique anisotropic grid: conventions and worth in one number."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.errors import UsageError
from hepalign.evaluation.baselines import BASELINES, find_baselines
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

SHIFT_MM = np.array([7.0, -4.0, 5.0])
BUMP_MM = np.array([0.0, 5.0, -8.0])
CENTRE_MM = np.array([30.0, -20.0, 50.0])


def scene(points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """A body, an organ and some vessels as a smooth function of the world, HU."""
    rng = np.random.default_rng(3)
    p = points_mm - CENTRE_MM
    hu = np.full(p.shape[:-1], -1000.0)
    body = 1 / (1 + np.exp((np.linalg.norm(p / [58, 48, 52], axis=-1) - 1) * 12))
    hu += body * 1000
    organ = 1 / (1 + np.exp((np.linalg.norm((p - [8, 5, 3]) / [34, 28, 30], axis=-1) - 1) * 10))
    hu += organ * 100
    for _ in range(30):
        where, size = rng.normal(size=3) * [24, 18, 20], rng.uniform(5, 10)
        hu += rng.choice([-140, 160]) * np.exp(-0.5 * (np.linalg.norm(p - where, axis=-1) / size) ** 2) * body
    return hu.astype(np.float32)


def true_displacement(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    bump = np.exp(-0.5 * (np.linalg.norm(points_mm - CENTRE_MM, axis=-1) / 28) ** 2)
    return SHIFT_MM + bump[..., None] * BUMP_MM


def oblique(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], angle: float) -> Geometry:
    c, s = np.cos(angle), np.sin(angle)
    direction = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-1, 1, 1])
    geometry = Geometry.from_spacing(shape, spacing_mm, direction=direction)
    return Geometry.from_spacing(shape, spacing_mm, direction=direction, origin_mm=CENTRE_MM - geometry.centre_mm)


@pytest.fixture(scope="module")
def known_warp() -> tuple[Volume, Volume, NDArray[np.bool_]]:
    fixed_grid = oblique((44, 36, 36), (3.0, 3.5, 4.0), 0.3)
    moving_grid = oblique((40, 42, 34), (3.5, 3.0, 4.0), -0.2)
    points = fixed_grid.grid_mm()
    fixed = scene(points + true_displacement(points))
    hole = np.zeros(fixed.shape, bool)
    hole[20:26, 14:20, 16:22] = True
    fixed[hole] = 2000.0
    return Volume(scene(moving_grid.grid_mm()), moving_grid), Volume(fixed, fixed_grid), ~hole


def organ_errors_mm(field_vectors: NDArray[np.float32], grid: Geometry) -> float:
    points = grid.grid_mm()
    inside = np.linalg.norm((points - CENTRE_MM) / [34, 28, 30], axis=-1) < 1
    return float(np.linalg.norm(field_vectors - true_displacement(points), axis=-1)[inside].mean())


# what rigid can reach at best is about 3 mm here; the start stands at 12 mm
@pytest.mark.parametrize(
    ("name", "reached_mm"), [("ants-rigid", 4.5), ("ants-syn", 2.4), ("greedy-nmi", 2.0), ("greedy-wncc", 1.5)]
)
def test_peer_recovers_known_warp_on_oblique_grids(
    name: str, reached_mm: float, known_warp: tuple[Volume, Volume, NDArray[np.bool_]]
) -> None:
    moving, fixed, valid = known_warp
    field = BASELINES[name].register(moving, fixed, fixed_mask=valid)
    assert field.geometry.same_grid(fixed.geometry)
    error = organ_errors_mm(field.vectors, fixed.geometry)
    print(name, error)
    assert error < reached_mm


def test_start_bridges_scanners_that_count_from_different_origins(
    known_warp: tuple[Volume, Volume, NDArray[np.bool_]],
) -> None:
    moving, fixed, valid = known_warp
    far = np.array([300.0, -250.0, 400.0])
    affine = moving.geometry.affine.copy()
    affine[:3, 3] += far
    field = BASELINES["ants-rigid"].register(
        Volume(moving.data, Geometry(moving.geometry.shape, affine)), fixed, fixed_mask=valid
    )
    assert organ_errors_mm(field.vectors - far.astype(np.float32), fixed.geometry) < 4.5
    corner = fixed.geometry.corners_mm()[:1]
    linear_end = corner @ field.linear[:3, :3].T + field.linear[:3, 3]
    np.testing.assert_allclose(linear_end, corner + field.vectors[0, 0, 0], atol=0.1)


def test_unknown_peer_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match="greedy-nmi"):
        find_baselines(["ants-rigid", "grady"])


def test_missing_package_is_said_by_name() -> None:
    from dataclasses import replace

    reason = replace(BASELINES["greedy-nmi"], module="no_such_package_anywhere").missing()
    assert reason is not None
    assert "no_such_package_anywhere" in reason
