"""What a scanner does to an image: noise with its own grain, coil shading, thick slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter1d

from hepalign.cases.phantom.lattice import smooth_noise
from hepalign.image.geometry import Geometry

Array = NDArray[np.float32]
REFERENCE_VOXEL_MM = 2.8
HU_RANGE = (-1024.0, 3071.0)
AIR_HU = -1000.0
TABLE_GAP_MM, TABLE_RADIUS_MM, TABLE_HALF_WIDTH_MM, TABLE_THICKNESS_MM = 5.0, 1200.0, 200.0, 32.0
# Above air, at 2.8 mm voxels: a carbon shell of a millimetre and the foam in it.
TABLE_SHELL_HU, TABLE_FOAM_HU = 960.0, 60.0


def ct_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_hu: float, spacing_mm: float) -> Array:
    """Noise of a reconstruction: correlated over about a millimetre in plane, stronger in smaller voxels.

    Args:
        rng: this image's own stream; two images never share one.
        shape: (D, H, W), slices along the last axis.
        sigma_hu: standard deviation at 2.8 mm voxels.
        spacing_mm: the grid's.
    """
    kernel_mm = 1.2
    white = rng.standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter(white, (kernel_mm / spacing_mm, kernel_mm / spacing_mm, 0), mode="wrap", truncate=2.5)
    noise *= sigma_hu * (REFERENCE_VOXEL_MM / spacing_mm) ** 0.5 / noise.std()
    return np.asarray(noise, np.float32)


def add_table(image: Array, body: NDArray[np.bool_], geometry: Geometry) -> Array:
    """A scanner's couch under the patient: a thin curved shell, a flat base, foam between; (D, H, W) HU."""
    if not body.any():
        return image
    axes = [axis.astype(np.float32) for axis in np.ogrid[tuple(slice(0, n) for n in geometry.shape)]]
    rows = geometry.affine.astype(np.float32)
    x, y = (rows[r, 0] * axes[0] + rows[r, 1] * axes[1] + rows[r, 2] * axes[2] + rows[r, 3] for r in (0, 1))
    lowest = float(y[:, np.flatnonzero(body.any(axis=(0, 2)))[0], :].min())
    depth = (lowest - TABLE_GAP_MM) + x * x / TABLE_RADIUS_MM - y
    across = np.abs(x) < TABLE_HALF_WIDTH_MM
    blur = np.float32(geometry.spacing_mm[1])
    shell = np.maximum(1.5 - np.minimum(np.abs(depth), np.abs(depth - TABLE_THICKNESS_MM)) / blur, 0)
    foam = (depth > 0) & (depth < TABLE_THICKNESS_MM)
    couch = AIR_HU + np.maximum(TABLE_SHELL_HU * np.minimum(shell, 1), TABLE_FOAM_HU * foam)
    return np.asarray(np.where(across & ~body, np.maximum(image, couch), image), np.float32)


def store_hu(image: Array) -> NDArray[np.int16]:
    """Rounds to the integers a CT file holds, within the scanner's range."""
    return np.clip(np.rint(image), *HU_RANGE).astype(np.int16)


def coil_shading(rng: np.random.Generator, shape: tuple[int, int, int], strength: float) -> Array:
    """A smooth positive factor about 1 (bias field)."""
    coarse = smooth_noise(rng, 1, (8, 8, 8), 1.6)[0]
    axes = [np.linspace(0, 7, n) for n in shape]
    field = coarse
    for axis, positions in enumerate(axes):
        low = np.minimum(positions.astype(int), 6)
        share = (positions - low).astype(np.float32)
        share = share * share * (3 - 2 * share)
        expand: list[slice | None] = [None] * 3
        expand[axis] = slice(None)
        field = (
            np.take(field, low, axis) * (1 - share[tuple(expand)])
            + np.take(field, low + 1, axis) * share[tuple(expand)]
        )
    return np.asarray(np.exp(strength * field), np.float32)


def mr_acquisition(
    rng: np.random.Generator, signal: Array, *, noise: float, slice_voxels: float, shading: float
) -> NDArray[np.float32]:
    """Thick slices (along the last axis), coil shading and Rician noise; scanner units of about 0 to 1000."""
    thick = uniform_filter1d(signal, max(1, round(slice_voxels)), axis=2, mode="nearest")
    shaded = thick * coil_shading(rng, signal.shape, shading)
    top = float(np.percentile(shaded[shaded > 0.02], 95)) if (shaded > 0.02).any() else 1.0
    sigma = noise * top
    real = shaded + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real * real + imaginary * imaginary) * (800.0 / top), np.float32)
