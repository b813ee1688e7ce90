"""How well a registration did: overlap, distances in millimetres, and how regular its field is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.image.geometry import Geometry
from hepalign.shapes import Mask3, Points
from hepalign.transform.displacement import DisplacementField, transform_points
from hepalign.transform.displacement import sample as sample_field
from hepalign.transform.jacobian import folding_fraction, jacobian_determinants

HAUSDORFF_PERCENTILE = 95.0
# log J of a folded voxel has no value; the field counts it as the strongest compression told apart from zero.
SMALLEST_JACOBIAN = 1e-3
# Where an image ends, outlines are those of the view, not of the body.
VIEW_MARGIN_MM = 10.0


@dataclass(frozen=True)
class Regularity:
    """How regular a field is: share of folded voxels, SD of log J, extremes of J (central differences)."""

    folding_fraction: float
    sd_log_jacobian: float
    jacobian_min: float
    jacobian_max: float


def dice(prediction: Mask3, truth: Mask3) -> float:
    """2 |A ∩ B| / (|A| + |B|), 0 … 1; NaN when the truth is empty (MONAI's)."""
    return float(compute_dice(_one_hot(prediction), _one_hot(truth), include_background=True))


def hausdorff_95_mm(prediction: Mask3, truth: Mask3, geometry: Geometry) -> float:
    """The 95th percentile of the surfaces' distances, the larger direction, mm; NaN when either mask is empty."""
    if not (prediction.any() and truth.any()):
        return float("nan")
    with _quiet():
        distance = compute_hausdorff_distance(
            _one_hot(prediction),
            _one_hot(truth),
            include_background=True,
            percentile=HAUSDORFF_PERCENTILE,
            spacing=list(geometry.spacing_mm),
        )
    return float(distance)


def surface_distance_mm(prediction: Mask3, truth: Mask3, geometry: Geometry) -> float:
    """Average symmetric surface distance, mm; NaN when either mask is empty."""
    if not (prediction.any() and truth.any()):
        return float("nan")
    with _quiet():
        distance = compute_average_surface_distance(
            _one_hot(prediction),
            _one_hot(truth),
            include_background=True,
            symmetric=True,
            spacing=list(geometry.spacing_mm),
        )
    return float(distance)


def landmark_errors_mm(field: DisplacementField, fixed_mm: Points, moving_mm: Points) -> NDArray[np.float64]:
    """Target registration error of each landmark, (N,) mm: where the field sends a fixed point, against its match."""
    errors: NDArray[np.float64] = np.linalg.norm(transform_points(field, fixed_mm) - np.asarray(moving_mm), axis=-1)
    return errors


def dense_errors_mm(field: DisplacementField, truth: DisplacementField, region: Mask3) -> NDArray[np.float64]:
    """Target registration error at every voxel of `region` (a mask on the truth's grid), (N,) mm."""
    points_mm = truth.geometry.index_to_world(np.argwhere(region))
    errors: NDArray[np.float64] = np.linalg.norm(sample_field(field, points_mm) - truth.vectors[region], axis=-1)
    return errors


def skin_distance_mm(prediction: Mask3, truth: Mask3, shown: Mask3, geometry: Geometry) -> float:
    """Median distance from a body's outline to another's, mm; no alignment is needed to know it.

    Args:
        prediction: the body that was carried over. Small images of an MR have outlines that are no skin, as where bone
            lies at the view's end: nothing is asked from there.
        truth: the fixed image's body, on the same grid.
        shown: where both images show something. What is nearer than `VIEW_MARGIN_MM` to its end is not asked: a body
            that is cut off there has no outline.
        geometry: of that grid.

    Returns:
        NaN where either outline is not to be seen.
    """
    spacing_mm = geometry.spacing_mm
    within = ndimage.distance_transform_edt(np.pad(shown, 1), spacing_mm)[1:-1, 1:-1, 1:-1] > VIEW_MARGIN_MM
    there, here = (mask & ~ndimage.binary_erosion(mask, border_value=1) for mask in (prediction, truth))
    if not (there.any() and (here & within).any()):
        return float("nan")
    return float(np.median(ndimage.distance_transform_edt(~there, spacing_mm)[here & within]))


def regularity(field: DisplacementField, region: Mask3 | None = None) -> Regularity:
    """Folding over the whole grid; SD log J and the extremes of J inside `region` (the whole grid when None)."""
    determinants = np.asarray(jacobian_determinants(field))
    inside = determinants if region is None or not region.any() else determinants[region]
    return Regularity(
        folding_fraction=float(folding_fraction(field)),
        sd_log_jacobian=float(np.log(np.maximum(inside, SMALLEST_JACOBIAN)).std()),
        jacobian_min=float(inside.min()),
        jacobian_max=float(inside.max()),
    )


def inverse_consistency_mm(forward: DisplacementField, backward: DisplacementField, region: Mask3) -> float:
    """Mean ‖backward(forward(x)) − x‖ over `region` (a mask on the forward field's grid), mm."""
    points_mm = forward.geometry.index_to_world(np.argwhere(region))
    there = points_mm + forward.vectors[region]
    back = there + sample_field(backward, there)
    return float(np.linalg.norm(back - points_mm, axis=-1).mean())


def _one_hot(mask: Mask3) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


@contextmanager
def _quiet() -> Iterator[None]:
    # MONAI 1.6 warns at every call about an argument that MONAI itself passes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
