from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from hepalign.image.bias import bias_field
from hepalign.image.geometry import Geometry
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume

GRID = Geometry.from_spacing((40, 36, 20), (8.0, 8.0, 10.0))


def tissue() -> tuple[np.ndarray, np.ndarray]:
    """A body of a few tissues, and where it is."""
    rng = np.random.default_rng(0)
    x, y, _ = np.moveaxis(GRID.grid_mm() - GRID.centre_mm, -1, 0)
    body = (x / 140) ** 2 + (y / 110) ** 2 < 1
    kinds = np.digitize(ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2), (-0.03, 0.03))
    image = np.where(body, np.array([220.0, 300.0, 400.0])[kinds], 5.0)
    return image + rng.normal(size=GRID.shape) * 4, body


def shading() -> np.ndarray:
    x, y, z = np.moveaxis(GRID.grid_mm() - GRID.centre_mm, -1, 0)
    return np.exp(0.4 * x / 160 - 0.3 * (y / 140) ** 2 + 0.2 * z / 100)


def test_a_known_shading_is_found_and_taken_away() -> None:
    image, body = tissue()
    shaded = Volume((image * shading()).astype(np.float32), GRID)
    found = bias_field(shaded)
    truth = shading()
    before = np.log(truth[body]).std()
    after = np.log(truth[body] / found.data[body]).std()
    assert after < before / 2
    np.testing.assert_allclose((shaded.data / found.data) * found.data, shaded.data, rtol=1e-5)


def test_an_even_image_stays_as_it_is() -> None:
    image, body = tissue()
    found = bias_field(Volume(image.astype(np.float32), GRID)).data
    assert np.abs(np.log(found[body])).std() < 0.05


def test_an_image_of_one_value_has_no_shading() -> None:
    found = bias_field(Volume(np.full(GRID.shape, 7.0, np.float32), GRID))
    np.testing.assert_array_equal(found.data, np.ones(GRID.shape, np.float32))


def test_a_real_liver_mr_grows_more_even_within_the_liver(real_data: Path) -> None:
    folder = real_data / "chaos-mr" / "01"
    mr, liver = read_volume(folder / "t2.nii.gz"), read_volume(folder / "organs.nii.gz").data == 1
    bias = bias_field(mr).as_float()
    before, after = mr.as_float()[liver], (mr.as_float() / bias)[liver]
    assert after.std() / after.mean() < before.std() / before.mean()
