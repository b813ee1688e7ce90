from __future__ import annotations

import numpy as np
import pytest

from hepalign.errors import UsageError
from hepalign.transform import linear


def test_rotation_turns_right_handed_about_its_centre() -> None:
    turn = linear.rotation((0, 0, 90), (1, 0, 0))
    np.testing.assert_allclose(linear.apply(turn, [[2, 0, 5], [1, 0, 0]]), [[1, 1, 5], [1, 0, 0]], atol=1e-12)


def test_lps_flips_x_and_y_only() -> None:
    np.testing.assert_allclose(linear.to_lps(linear.translation((1, 2, 3)))[:3, 3], (-1, -2, 3))
    turn = linear.rotation((10, 20, 30))
    np.testing.assert_allclose(linear.to_lps(linear.to_lps(turn)), turn)


def test_fits_return_the_map_that_made_the_points() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3)) * 50
    rigid = linear.rotation((10, -40, 70), (5, 6, 7)) @ linear.translation((1, 2, 3))
    np.testing.assert_allclose(linear.fit_rigid(points, linear.apply(rigid, points)), rigid, atol=1e-9)
    affine = linear.about(np.diag([1.1, 0.9, 1.3]), (1, 1, 1)) @ rigid
    np.testing.assert_allclose(linear.fit_affine(points, linear.apply(affine, points)), affine, atol=1e-9)


def test_a_rigid_fit_never_mirrors() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3))
    assert np.linalg.det(linear.fit_rigid(points, points * (-1, 1, 1))[:3, :3]) == pytest.approx(1)


def test_inverse_undoes_and_refuses_a_flat_map() -> None:
    turn = linear.rotation((10, 20, 30), (4, 5, 6))
    np.testing.assert_allclose(linear.inverse(turn) @ turn, np.eye(4), atol=1e-12)
    with pytest.raises(UsageError) as error:
        linear.inverse(np.zeros((4, 4)))
    assert error.value.code == "singular_map"


@pytest.mark.parametrize("points", [np.zeros((2, 3)), np.zeros((5, 2))])
def test_too_few_points_are_refused(points: np.ndarray) -> None:
    for fit in (linear.fit_rigid, linear.fit_affine):
        with pytest.raises(UsageError) as error:
            fit(points, points)
        assert error.value.code == "too_few_points"


def test_coplanar_points_have_no_affine_fit() -> None:
    plane = np.random.default_rng(0).normal(size=(8, 3)) * (1, 1, 0)
    with pytest.raises(UsageError, match="one plane"):
        linear.fit_affine(plane, plane)
