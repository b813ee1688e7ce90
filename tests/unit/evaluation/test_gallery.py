"""The pictures are pictures: right size, not blank, and they show what moved."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from hepalign.evaluation.gallery import hole_picture, pair_picture
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import translation

GRID = Geometry.from_spacing((16, 14, 12), 6.0)


def ball(centre: tuple[float, float, float]) -> np.ndarray:
    return np.linalg.norm(GRID.grid_mm() - centre, axis=-1) < 24


def ct(centre: tuple[float, float, float]) -> Volume:
    return Volume(np.where(ball(centre), 100.0, -150.0).astype(np.float32), GRID)


class Patient(SimpleNamespace):
    def volume(self, name: str) -> Volume:
        return self.images[name]

    def mask(self, name: str) -> Volume | None:
        return self.images.get(name)


def pixels(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.float32)


def test_fused_tile_turns_grey_when_the_field_is_right() -> None:
    there, here = (55.0, 40.0, 33.0), (40.0, 40.0, 33.0)
    patient = Patient(images={"pct": ct(there), "ict": ct(here), "ict_liver": Volume(ball(here), GRID)})
    right = DisplacementField.from_linear(translation(np.subtract(there, here)), GRID)
    colour = []
    for field in (DisplacementField.identity(GRID), right):
        image = pixels(pair_picture(patient, "pCT-iCT", field))  # type: ignore[arg-type]
        assert image.shape[1] > 1000
        fused = image[:, image.shape[1] * 2 // 6 : image.shape[1] * 3 // 6]
        colour.append(float(np.abs(fused[..., 0] - fused[..., 1]).mean()))
    assert colour[1] < colour[0] / 2


def test_hole_picture_has_four_tiles() -> None:
    hole = Volume(ball((40.0, 40.0, 33.0)) & ~ball((60.0, 40.0, 33.0)), GRID)
    image = pixels(hole_picture(ct((40.0, 40.0, 33.0)), ct((45.0, 40.0, 33.0)), ct((40.0, 40.0, 33.0)), hole))
    tiles = np.array_split(image, 4, axis=1)
    assert all(tile.std() > 5 for tile in tiles)
