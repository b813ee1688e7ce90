from __future__ import annotations

import numpy as np
import pytest
from small_pairs import body_ct

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference import affine as module
from hepalign.inference.affine import affine_start, affine_start_mr, strain, symmetric_part
from hepalign.transform.linear import rotation

BIG = (40, 40, 32)


def moved(ct: Volume, matrix: np.ndarray) -> Volume:
    """The patient elsewhere: the same voxels, placed by `matrix`."""
    return Volume(ct.data, Geometry(ct.geometry.shape, matrix @ ct.geometry.affine))


def mr_of(ct: Volume) -> Volume:
    """Fluid bright, bone dark, lung and air black, in units of its own."""
    hu = ct.as_float()
    return ct.with_data(np.where(hu > -500, 400 - np.clip(hu, -150, 300), 0).astype(np.float32))


def error_mm(ct: Volume, found: np.ndarray, truth: np.ndarray) -> float:
    points = ct.geometry.index_to_world(np.argwhere(ct.as_float() > -500)[::50])
    return float(np.linalg.norm(points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3], axis=1).mean())


@pytest.mark.parametrize(
    ("angles_deg", "shift_mm"),
    [((0, 0, 0), (0, 0, 0)), ((15, -10, 12), (30, -25, 20)), ((0, 0, 90), (0, 0, 0)), ((0, 0, 180), (10, 0, 0))],
    ids=["in place", "tilted and shifted", "on the side", "prone"],
)
def test_a_moved_patient_is_found(angles_deg: tuple[int, ...], shift_mm: tuple[int, ...]) -> None:
    ct = body_ct(3, BIG, 8.0)
    truth = rotation(angles_deg)
    truth[:3, 3] += shift_mm
    start = affine_start(moved(ct, truth), ct)
    # a quarter of a voxel of the images, a sixth of the coarsest level's
    assert error_mm(ct, start.matrix, truth) < 2.0
    assert start.similarity > 0.95


def test_an_mr_is_found_by_its_body_and_structure_alone() -> None:
    ct = body_ct(3, BIG, 8.0)
    truth = rotation((8, -5, 6))
    truth[:3, 3] += (20, -15, 12)
    start = affine_start_mr(moved(mr_of(ct), truth), ct)
    assert error_mm(ct, start.matrix, truth) < 4.0


def test_a_small_field_of_view_is_looked_at_more_finely() -> None:
    """All that is true of the image above, at a quarter of its size."""
    ct = body_ct(3, BIG, 2.0)
    truth = rotation((8, -5, 6))
    truth[:3, 3] += (5, -4, 3)
    assert error_mm(ct, affine_start_mr(moved(mr_of(ct), truth), ct).matrix, truth) < 1.0
    assert error_mm(ct, affine_start(moved(ct, truth), ct).matrix, truth) < 0.5


@pytest.mark.parametrize(("cost", "low", "high"), [(module.STRAIN_COST, 0.0, 0.1), (0.0, 0.2, 1.0)])
def test_a_thin_slab_in_which_nothing_fits_is_not_sheared(
    monkeypatch: pytest.MonkeyPatch, cost: float, low: float, high: float
) -> None:
    monkeypatch.setattr(module, "STRAIN_COST", cost)
    another = mr_of(body_ct(53, BIG, 4.0)).crop((slice(0, 40), slice(0, 40), slice(12, 19)))
    start = affine_start_mr(another, body_ct(3, BIG, 4.0))
    assert low <= float(np.linalg.norm(strain(start.matrix))) < high


def test_a_rotation_strains_nothing_and_a_stretch_by_its_square() -> None:
    turned = rotation((20, -30, 40), (5.0, 6.0, 7.0))
    np.testing.assert_allclose(strain(turned), 0, atol=1e-12)
    stretched = np.diag([1.2, 1.0, 0.9, 1.0])
    expected = turned[:3, :3] @ np.diag([0.22, 0, -0.095]) @ turned[:3, :3].T
    np.testing.assert_allclose(strain(turned @ stretched), expected, atol=1e-12)


def test_a_small_step_adds_its_symmetric_part() -> None:
    step = 1e-6 * np.random.default_rng(0).standard_normal((3, 3))
    grown = rotation((20, -30, 40))
    grown[:3, :3] = (np.eye(3) + step) @ grown[:3, :3]
    added = (symmetric_part().numpy() @ step.flatten()).reshape(3, 3)
    np.testing.assert_allclose(strain(grown), added, atol=1e-11)


def test_images_that_lie_apart_are_refused() -> None:
    ct = body_ct(3, BIG, 8.0)
    far = np.eye(4)
    far[0, 3] = 2000
    with pytest.raises(BadInputError) as caught:
        affine_start(moved(ct, far), ct)
    assert caught.value.code == "no_overlap"
