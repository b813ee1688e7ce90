"""Volumes to SimpleITK and ITK's displacement fields back: RAS here, LPS there."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

# RAS to LPS and back: x and y change sign.
LPS = np.array([-1.0, -1.0, 1.0])


def lps_frame(geometry: Geometry) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """Origin (mm), spacing (mm) and direction (3 x 3) of a grid as ITK counts them."""
    return (
        (LPS * geometry.origin_mm).tolist(),
        list(geometry.spacing_mm),
        LPS[:, None] * geometry.direction,
    )


def to_itk(volume: Volume) -> sitk.Image:
    """A SimpleITK image of the volume (bool becomes uint8)."""
    data = volume.data.astype(np.uint8) if volume.data.dtype == bool else volume.data
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(data)))
    origin, spacing, direction = lps_frame(volume.geometry)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel().tolist())
    return image


def from_itk_array(image: sitk.Image) -> NDArray[np.float32]:
    """The voxels of a scalar image in our axis order, float32."""
    return np.ascontiguousarray(np.transpose(sitk.GetArrayFromImage(image)), dtype=np.float32)


def field_from_itk(vectors_lps: NDArray[np.generic], geometry: Geometry) -> DisplacementField:
    """A field from ITK's array (k, j, i, 3), LPS millimetres, on the grid of `geometry`."""
    vectors = np.transpose(np.asarray(vectors_lps, np.float64), (2, 1, 0, 3)) * LPS
    return DisplacementField(np.ascontiguousarray(vectors, dtype=np.float32), geometry)


def matrix_ras_from_lps(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A 4 x 4 world-to-world map from LPS to RAS; the way back is the same."""
    flip = np.diag([*LPS, 1.0])
    return flip @ matrix @ flip
