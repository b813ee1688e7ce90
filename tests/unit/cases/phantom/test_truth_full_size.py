"""The phantom's truth at full size, on seeds nobody looked at: residuals, folds, inverses, time. Long."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.cases.phantom import PhantomConfig, make_case
from hepalign.cases.phantom.anatomy import Anatomy, draw_anatomy
from hepalign.cases.phantom.make import Streams, draw_motions, liver_sample
from hepalign.cases.phantom.motion import Motion, rigid_residual_mm
from hepalign.cases.phantom.needles import grid_points
from hepalign.image.geometry import Geometry
from hepalign.transform.displacement import DisplacementField, compose, invert
from hepalign.transform.jacobian import fold_mask
from hepalign.transform.linear import fit_affine

pytestmark = pytest.mark.slow

SHAPE = (128, 128, 96)
SPACING_MM = 2.8
CLOSES_MM = 0.1
GRID = Geometry.from_spacing(SHAPE, SPACING_MM, origin_mm=tuple(-(n - 1) / 2 * SPACING_MM for n in SHAPE))
Masks = dict[str, NDArray[np.bool_]]
Truth = tuple[Masks, Masks, dict[tuple[str, str], DisplacementField]]
PAIRS = (("ict", "pct"), ("pct", "pmr"), ("ict", "pmr"))


def _person(seed: int) -> tuple[Anatomy, dict[str, Motion]]:
    anatomy = draw_anatomy(Streams(seed).get("anatomy"), PhantomConfig())
    return anatomy, draw_motions(Streams(seed).get("motion"), anatomy, PhantomConfig())


def _affine_residual_mm(source: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    matrix = fit_affine(source, target)
    return float(np.linalg.norm(source @ matrix[:3, :3].T + matrix[:3, 3] - target, axis=1).mean())


def test_the_best_rigid_map_leaves_five_to_eight_millimetres_on_24_persons() -> None:
    left: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in PAIRS[:2]}
    for seed in range(3000, 3024):
        anatomy, motions = _person(seed)
        inside = liver_sample(anatomy)
        placed = {role: motion.from_anatomy(inside, 40).T.astype(np.float64) for role, motion in motions.items()}
        for a, b in left:
            left[a, b].append((rigid_residual_mm(placed[a], placed[b]), _affine_residual_mm(placed[a], placed[b])))
    for residuals in left.values():
        rigid_mm, affine_mm = np.mean(residuals, axis=0)
        assert 5 <= rigid_mm <= 8
        assert affine_mm > 4
        assert all(4.9 < rigid < 8.2 for rigid, _ in residuals)


@pytest.fixture(scope="module", params=[3101, 3102, 3103])
def truth(request: pytest.FixtureRequest) -> Truth:
    """By role where the liver lies and what is within two voxels of the sliding wall; the fields by pair."""
    anatomy, motions = _person(request.param)
    points = {role: motion.to_anatomy(grid_points(GRID)) for role, motion in motions.items()}
    livers, walls = {}, {}
    for role in motions:
        livers[role] = anatomy.liver(anatomy.shape_points(points[role])) < 0
        cavity = motions["ict"].cavity
        assert cavity is not None
        inside = cavity.read(points[role])[0] < 0
        wall = (inside ^ ndimage.binary_erosion(inside)) | (~inside ^ ndimage.binary_erosion(~inside))
        walls[role] = ndimage.distance_transform_edt(~wall) <= 2
    fields = {}
    for fixed, moving in PAIRS:
        moved = motions[moving].from_anatomy(points[fixed]) - grid_points(GRID)
        fields[fixed, moving] = DisplacementField(np.ascontiguousarray(np.moveaxis(moved, 0, -1)), GRID)
    return livers, walls, fields


def test_no_liver_folds_and_nothing_far_from_the_wall(truth: Truth) -> None:
    livers, walls, fields = truth
    for (fixed, _), field in fields.items():
        folds = fold_mask(field)
        assert not (folds & livers[fixed]).any()
        assert not (folds & ~walls[fixed]).any()


def test_inverse_fields_close_within_a_tenth_of_a_millimetre(truth: Truth) -> None:
    livers, walls, fields = truth
    for (fixed, moving), field in fields.items():
        back = invert(field)
        gaps = np.linalg.norm(compose(field, back).vectors, axis=-1)
        landed = np.rint(GRID.world_to_index(GRID.grid_mm() + back.vectors)).astype(int)
        seen = ((landed >= 1) & (landed < np.array(SHAPE) - 1)).all(axis=-1)
        assert gaps[livers[moving] & seen].max() < CLOSES_MM
        at_wall = walls[fixed][tuple(np.moveaxis(landed.clip(0, np.array(SHAPE) - 1), -1, 0))]
        assert gaps[seen & ~at_wall & ~walls[moving]].max() < CLOSES_MM


@pytest.mark.parametrize(("shape", "seconds"), [((128, 128, 96), 10), ((256, 256, 128), 40)])
def test_a_triplet_is_made_in_time(shape: tuple[int, int, int], seconds: float) -> None:
    make_case(0, (32, 32, 24))
    before = time.process_time()
    make_case(3104, shape)
    assert time.process_time() - before < seconds
