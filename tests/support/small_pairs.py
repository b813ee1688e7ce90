"""Small CTs with texture and a known warp between them, cheap enough for unit tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.warp import warp

SHAPE = (48, 48, 32)
SPACING_MM = 3.0


def body_ct(seed: int = 0, shape: tuple[int, int, int] = SHAPE, spacing_mm: float = SPACING_MM) -> Volume:
    """An asymmetric body of soft tissue in air, with a bone, organs and vessels; HU, centred on the world's origin."""
    rng = np.random.default_rng(seed)
    extent = (np.asarray(shape) - 1) * spacing_mm
    geometry = Geometry.from_spacing(shape, spacing_mm, origin_mm=-extent / 2)
    x, y, z = np.moveaxis(geometry.grid_mm() / (extent / 2), -1, 0)
    hu = np.full(shape, -1000.0)
    body = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 2.0)
    hu[body] = 20 + 60 * (texture / texture.std())[body]
    hu[(x / 0.2) ** 2 + ((y + 0.4) / 0.2) ** 2 < 1] = 600
    # an air-filled organ in front, on the left
    hu[((x + 0.35) / 0.3) ** 2 + ((y - 0.2) / 0.25) ** 2 + ((z - 0.3) / 0.6) ** 2 < 1] = -900
    liver = ((x - 0.35) / 0.4) ** 2 + ((y - 0.05) / 0.4) ** 2 + (z / 0.7) ** 2 < 1
    hu[liver] += 60
    return Volume(hu.astype(np.float32), geometry)


def liver_mask(ct: Volume) -> Volume:
    """The bright ellipsoid of `body_ct`."""
    half = (np.asarray(ct.geometry.shape) - 1) * np.asarray(ct.geometry.spacing_mm) / 2
    x, y, z = np.moveaxis(ct.geometry.grid_mm() / half, -1, 0)
    return ct.with_data(((x - 0.35) / 0.4) ** 2 + ((y - 0.05) / 0.4) ** 2 + (z / 0.7) ** 2 < 1)


@dataclass(frozen=True)
class SmallPair:
    """`fixed(x) = moving(x + truth(x))` plus noise, and a rod of metal with its mask in the fixed image."""

    moving: Volume
    fixed: Volume
    truth: DisplacementField
    probe_mask: Volume
    liver: Volume  # on the moving image

    def error_mm(self, field: DisplacementField) -> float:
        """Mean end-point error inside the body."""
        error = np.linalg.norm(field.vectors - self.truth.vectors, axis=-1)
        return float(error[self.fixed.as_float() > -500].mean())


def small_pair(seed: int = 0, *, amplitude_mm: float = 8.0, noise_hu: float = 8.0) -> SmallPair:
    """A smooth warp of about `amplitude_mm` in the middle of the body."""
    moving = body_ct(seed)
    points = moving.geometry.grid_mm()
    bump = np.exp(-0.5 * ((points / 40.0) ** 2).sum(-1))
    vectors = (bump[..., None] * np.array([0.3, -0.4, 1.0]) * amplitude_mm).astype(np.float32)
    truth = DisplacementField(vectors, moving.geometry)
    rng = np.random.default_rng(seed + 100)
    fixed = warp(moving, truth).as_float() + rng.normal(0, noise_hu, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[30:33, 20:44, 14:17] = True
    fixed[31, 20:44, 15] = 3000
    return SmallPair(moving, moving.with_data(fixed), truth, moving.with_data(mask), liver_mask(moving))
