"""Each peer, on a known warp of an oblique anisotropic grid: conventions and worth in one number."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.errors import UsageError
from hepalign.evaluation.baselines import BASELINES, find_baselines, greedy
from hepalign.evaluation.baselines.correlation_ratio import correlation_ratio_cost
from hepalign.evaluation.baselines.flirt import world_from_flirt
from hepalign.evaluation.baselines.isolated import run_apart
from hepalign.evaluation.baselines.prepare import prepare, start
from hepalign.evaluation.baselines.problem import Problem
from hepalign.evaluation.baselines.task import Registered
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import rotation

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


def registered(name: str, moving: Volume, fixed: Volume, valid: NDArray[np.bool_]) -> Registered:
    found = run_apart([BASELINES[name].task(moving, fixed, fixed_mask=valid, threads=1, seed=3)])[0]
    assert isinstance(found, Registered), found
    return found


@pytest.fixture(scope="module")
def first_time(known_warp: tuple[Volume, Volume, NDArray[np.bool_]]) -> Callable[[str], Registered]:
    """A peer's answer to the known warp, found once."""
    return cache(lambda name: registered(name, *known_warp))


# The start stands at 12 mm; the best rigid map leaves about 3, the best affine 0.9.
@pytest.mark.parametrize(
    ("name", "reached_mm"),
    [
        ("ants-rigid", 4.5),
        ("ants-syn", 2.4),
        ("greedy-nmi", 2.0),
        ("greedy-wncc", 1.5),
        pytest.param("convexadam", 2.0, marks=pytest.mark.slow),
        pytest.param("direct-mind", 2.0, marks=pytest.mark.slow),
        pytest.param("elastix", 2.0, marks=pytest.mark.slow),
        pytest.param("direct-mi", 1.5, marks=pytest.mark.slow),
        pytest.param("flirt-cr", 4.5, marks=pytest.mark.slow),
    ],
)
def test_peer_recovers_known_warp_on_oblique_grids(
    name: str,
    reached_mm: float,
    known_warp: tuple[Volume, Volume, NDArray[np.bool_]],
    first_time: Callable[[str], Registered],
) -> None:
    fixed = known_warp[1]
    field = first_time(name).field
    assert field.geometry.same_grid(fixed.geometry)
    error = organ_errors_mm(field.vectors, fixed.geometry)
    assert error < reached_mm


def test_start_bridges_scanners_that_count_from_different_origins(
    known_warp: tuple[Volume, Volume, NDArray[np.bool_]],
) -> None:
    moving, fixed, valid = known_warp
    far = np.array([300.0, -250.0, 400.0])
    affine = moving.geometry.affine.copy()
    affine[:3, 3] += far
    field = registered("ants-rigid", Volume(moving.data, Geometry(moving.geometry.shape, affine)), fixed, valid).field
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


@pytest.mark.parametrize("bad", [1, 2])
def test_a_field_of_greedy_that_is_not_finite_gets_one_more_try(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    grid = Geometry.from_spacing((4, 4, 4), 2.0)
    tries: list[str] = []

    def made(problem: Problem, metric: str) -> DisplacementField:
        tries.append(metric)
        return DisplacementField(np.full((4, 4, 4, 3), np.nan if len(tries) <= bad else 1.0, np.float32), grid)

    monkeypatch.setattr(greedy, "_registered", made)
    image = Volume(np.zeros(grid.shape, np.float32), grid)
    field = greedy.greedy_nmi(Problem(image, image, np.ones(grid.shape, bool), ("ct", "ct"), threads=1, seed=0))
    assert tries == ["NMI", "NMI"]
    assert np.isfinite(field.vectors).all() == (bad == 1)


def test_every_peer_has_its_settings_written_down() -> None:
    linear, deformable = ["ants-rigid", "flirt", "flirt-cr"], ["ants-syn", "greedy-nmi", "greedy-wncc", "elastix"]
    names = [*linear, *deformable, "convexadam", "direct-mi", "direct-mind"]
    assert sorted(BASELINES) == sorted(names)
    assert all(BASELINES[name].family == "linear" for name in linear)
    assert all(len(BASELINES[name].settings) > 40 for name in names)


def test_correlation_ratio_is_zero_where_fixed_explains_moving_and_one_where_it_does_not() -> None:
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 20, 20_000)
    look = rng.uniform(-5, 5, 20)
    weight = rng.uniform(0.1, 1, len(bins))
    # any function of the fixed intensity, however wild, is explained fully
    assert correlation_ratio_cost(bins, look[bins], weight) == pytest.approx(0.0, abs=1e-9)
    assert correlation_ratio_cost(bins, rng.normal(size=len(bins)), weight) == pytest.approx(1.0, abs=0.01)
    # half the variance is noise of its own
    mixed = look[bins] / look[bins].std() + rng.normal(size=len(bins))
    assert correlation_ratio_cost(bins, mixed, np.ones(len(bins))) == pytest.approx(0.5, abs=0.02)
    assert correlation_ratio_cost(bins, np.full(len(bins), 3.0), weight) == 1.0


def test_flirt_matrix_becomes_the_world_map_on_either_handedness() -> None:
    right = Geometry.from_spacing((10, 12, 8), (2.0, 3.0, 4.0), origin_mm=(5.0, -6.0, 7.0))
    left = Geometry.from_spacing((9, 11, 7), (2.5, 2.0, 3.0), direction=np.diag([-1, 1, 1]), origin_mm=(3.0, 2.0, 1.0))
    world = np.eye(4)
    c, s = np.cos(0.4), np.sin(0.4)
    world[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    world[:3, 3] = [4.0, -2.0, 1.0]

    def scaled_mm(geometry: Geometry, point: NDArray[np.float64]) -> NDArray[np.float64]:
        index = geometry.world_to_index(point)
        if np.linalg.det(geometry.affine[:3, :3]) > 0:
            index = [geometry.shape[0] - 1 - index[0], index[1], index[2]]
        return np.array([*(np.asarray(index) * geometry.spacing_mm), 1.0])

    for fixed, moving in ((right, left), (left, right), (right, right)):
        corners = [np.zeros(3), *(20 * np.eye(3))]
        there = np.array([scaled_mm(moving, world[:3, :3] @ p + world[:3, 3]) for p in corners]).T
        here = np.array([scaled_mm(fixed, p) for p in corners]).T
        flirt_matrix = here @ np.linalg.inv(there)  # FLIRT's own direction: moving to fixed
        np.testing.assert_allclose(world_from_flirt(flirt_matrix, moving=moving, fixed=fixed), world, atol=1e-9)


def test_start_finds_a_patient_on_a_side(known_warp: tuple[Volume, Volume, NDArray[np.bool_]]) -> None:
    _, fixed, valid = known_warp
    turn = rotation((0.0, 0.0, 35.0), CENTRE_MM)
    lying = Volume(fixed.data, Geometry(fixed.geometry.shape, turn @ fixed.geometry.affine))
    found = start(prepare(lying, "ct"), prepare(fixed, "ct"), valid)
    angle = np.degrees(np.arctan2(found[1, 0], found[0, 0]))
    assert angle == pytest.approx(40.0, abs=1e-6)


def test_prepared_images_begin_at_zero_and_lose_a_bias() -> None:
    rng = np.random.default_rng(1)
    grid = Geometry.from_spacing((32, 32, 24), 6.0)
    inside = np.linalg.norm((grid.grid_mm() - grid.centre_mm) / [80, 80, 60], axis=-1) < 1
    bias = np.exp(np.linspace(-0.5, 0.5, 32))[:, None, None]
    mr = (inside * 500.0 * bias + rng.uniform(0, 5, grid.shape)).astype(np.float32)
    prepared = prepare(Volume(mr, grid), "mr").as_float()
    assert prepared.min() == 0.0
    assert prepared[inside].std() / prepared[inside].mean() < 0.5 * mr[inside].std() / mr[inside].mean()
    ct = prepare(Volume(np.float32([[[-3000.0, 3000.0]]]), Geometry.from_spacing((1, 1, 2), 1.0)), "ct")
    np.testing.assert_array_equal(ct.data, [[[0.0, 800.0]]])


SLOW_ONES = ["greedy-wncc", "elastix", "convexadam", "direct-mi", "direct-mind", "flirt-cr"]


@pytest.mark.parametrize(
    "name", ["ants-syn", "greedy-nmi", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_ONES)]
)
def test_one_thread_and_the_same_seed_give_the_same_field(
    name: str, known_warp: tuple[Volume, Volume, NDArray[np.bool_]], first_time: Callable[[str], Registered]
) -> None:
    again = registered(name, *known_warp)
    np.testing.assert_array_equal(first_time(name).field.vectors, again.field.vectors)
