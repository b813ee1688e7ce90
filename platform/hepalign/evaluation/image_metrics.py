"""How good a made image is: the synthetic CT against the true one, the inpainted CT inside its hole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hepalign.image.geometry import Geometry
from hepalign.shapes import Array3, Mask3

# SynthRAD's dynamic range for PSNR and SSIM of a synthetic CT: −1024 … 3000 HU.
CT_RANGE_HU = (-1024.0, 3000.0)
# The inpainting's soft-tissue window; a hole in the liver is judged at its contrast, not at bone's.
SOFT_TISSUE_RANGE_HU = (-200.0, 400.0)
EDGE_SCALE_MM = 2.0
EDGE_SHARE = 0.05
# How far within the body's outline, and from the image's border, edges are looked for: a fat-suppressed MR hardly shows
# the skin, and a CT nothing as strongly.
SKIN_MM = 15.0
NORMAL_REACH_MM, NORMAL_STEP_MM = 8.0, 0.5
RIM_MM = 6.0
ROUNDING = 1e-4
SSIM_WINDOW_VOXELS = 7


def mean_absolute_error(image: Array3, truth: Array3, region: Mask3) -> float:
    """Mean |image − truth| over the region, in the images' unit; NaN for an empty region."""
    return float(np.abs(_inside(image, region) - _inside(truth, region)).mean()) if region.any() else float("nan")


def peak_signal_to_noise_db(image: Array3, truth: Array3, region: Mask3, span: tuple[float, float]) -> float:
    """PSNR over the region in dB, both images clipped to `span`; NaN for an empty region."""
    if not region.any():
        return float("nan")
    a, b = (np.clip(_inside(x, region), *span) for x in (truth, image))
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(a, b, data_range=span[1] - span[0]))  # type: ignore[no-untyped-call]


def structural_similarity_in(image: Array3, truth: Array3, region: Mask3, span: tuple[float, float]) -> float:
    """SSIM (7³ windows) averaged over the region's voxels, both images clipped to `span`; NaN for an empty region."""
    if not region.any():
        return float("nan")
    box = _box(region, SSIM_WINDOW_VOXELS)
    a, b = (np.clip(np.asarray(x[box], np.float32), *span) for x in (truth, image))
    window = min(SSIM_WINDOW_VOXELS, *(n - 1 + n % 2 for n in a.shape))
    _, local = structural_similarity(a, b, data_range=span[1] - span[0], win_size=window, full=True)  # type: ignore[no-untyped-call]
    return float(local[region[box]].mean())


def edge_drift_mm(synthetic: Array3, source: Array3, geometry: Geometry, region: Mask3) -> float:
    """How far the synthetic image's edges stand from the source's: the mean distance in mm from each strong edge of
    `synthetic` to the nearest edge of `source`, inside `region`.

    An edge is a maximum of the gradient magnitude (Gaussian, 2 mm) along its gradient. The strongest 5 % of the
    region's voxels count in the synthetic image; twice as many in the source, so that an edge whose contrast
    is weaker in the source's modality is still found. NaN when an image has no edges there.
    """
    strong = _edges(synthetic, geometry, region, EDGE_SHARE)
    any_contrast = _edges(source, geometry, region, 2 * EDGE_SHARE)
    if not (strong.any() and any_contrast.any()):
        return float("nan")
    distance_mm = ndimage.distance_transform_edt(~any_contrast, sampling=geometry.spacing_mm)
    return float(distance_mm[strong].mean())


def organ_boundary_mm(image: Array3, organ: Mask3, geometry: Geometry) -> float:
    """How far from an organ's boundary the image shows it: the mean distance in mm from the drawn surface to the
    steepest place of the image (Gaussian, 2 mm) along the surface's normal, at most 8 mm off.

    0 for an image that steps exactly there, about 4 mm where the image knows nothing of the organ; NaN without one.
    """
    surface = organ & ~ndimage.binary_erosion(organ)
    if not surface.any():
        return float("nan")
    spacing = np.asarray(geometry.spacing_mm)
    outside, inside = (ndimage.distance_transform_edt(mask, sampling=spacing) for mask in (~organ, organ))
    signed_mm = ndimage.gaussian_filter(outside - inside, EDGE_SCALE_MM / spacing)
    normal = np.stack(list(np.gradient(signed_mm, *spacing)))[:, surface]
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), EDGE_SCALE_MM / spacing)
    steepness = np.linalg.norm(np.stack(list(np.gradient(smooth, *spacing))), axis=0)
    # the surface runs midway between the organ's last voxel and the nearest that is none
    at = np.argwhere(surface).T + normal * (0.5 * inside[surface]) / spacing[:, None]
    steps_mm = np.arange(-NORMAL_REACH_MM, NORMAL_REACH_MM + NORMAL_STEP_MM / 2, NORMAL_STEP_MM)
    along = [
        ndimage.map_coordinates(steepness, at + s * normal / spacing[:, None], order=1, mode="nearest")
        for s in steps_mm
    ]
    return float(np.abs(steps_mm[np.argmax(along, axis=0)]).mean())


def rim(hole: Mask3, geometry: Geometry, width_mm: float = RIM_MM) -> Mask3:
    """The voxels within `width_mm` outside the hole."""
    distance_mm = ndimage.distance_transform_edt(~hole, sampling=geometry.spacing_mm)
    near: Mask3 = (distance_mm > 0) & (distance_mm <= width_mm)
    return near


def inpainting_scores(image: Array3, truth: Array3, hole: Mask3, geometry: Geometry) -> dict[str, float]:
    """L1 (HU), PSNR (dB) and SSIM inside the hole and on its 6 mm rim, soft-tissue window."""
    clipped = [np.clip(np.asarray(x, np.float32), *SOFT_TISSUE_RANGE_HU) for x in (image, truth)]
    scores = {}
    for name, region in (("hole", hole), ("rim", rim(hole, geometry))):
        scores[f"{name}_l1_hu"] = mean_absolute_error(clipped[0], clipped[1], region)
        scores[f"{name}_psnr_db"] = peak_signal_to_noise_db(image, truth, region, SOFT_TISSUE_RANGE_HU)
        scores[f"{name}_ssim"] = structural_similarity_in(image, truth, region, SOFT_TISSUE_RANGE_HU)
    return scores


def synthesis_scores(
    synthetic_ct: Array3,
    true_ct: Array3 | None,
    mr: Array3,
    geometry: Geometry,
    body: Mask3,
    liver: Mask3 | None = None,
) -> dict[str, float]:
    """MAE (HU), PSNR (dB), SSIM over the body where the true CT is known; the edge drift from the MR (mm) within the
    skin; and how far from the liver's boundary, where it was drawn on the MR, the synthetic CT shows it (mm).
    """
    within = ndimage.distance_transform_edt(np.pad(body, 1), sampling=geometry.spacing_mm)[1:-1, 1:-1, 1:-1] > SKIN_MM
    scores = {"edge_drift_mm": edge_drift_mm(synthetic_ct, mr, geometry, within)}
    if liver is not None:
        scores["liver_boundary_mm"] = organ_boundary_mm(synthetic_ct, liver, geometry)
    if true_ct is not None:
        scores["mae_hu"] = mean_absolute_error(synthetic_ct, true_ct, body)
        scores["psnr_db"] = peak_signal_to_noise_db(synthetic_ct, true_ct, body, CT_RANGE_HU)
        scores["ssim"] = structural_similarity_in(synthetic_ct, true_ct, body, CT_RANGE_HU)
    return scores


def _inside(image: Array3, region: Mask3) -> NDArray[np.float64]:
    return np.asarray(image[region], np.float64)


def _box(region: Mask3, margin_voxels: int) -> tuple[slice, ...]:
    found = ndimage.find_objects(region.astype(np.uint8))[0]
    return tuple(
        slice(max(0, s.start - margin_voxels), min(n, s.stop + margin_voxels))
        for s, n in zip(found, region.shape, strict=True)
    )


def _edges(image: Array3, geometry: Geometry, region: Mask3, share: float) -> Mask3:
    spacing = np.asarray(geometry.spacing_mm)
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), EDGE_SCALE_MM / spacing)
    gradient = np.stack(list(np.gradient(smooth, *spacing)))
    magnitude = np.linalg.norm(gradient, axis=0)
    if not region.any() or magnitude[region].max() <= 0:
        return np.zeros_like(region)
    step = gradient / np.maximum(magnitude, 1e-12) / spacing[:, None, None, None] * spacing.min()
    here = np.indices(image.shape, dtype=np.float32)
    ahead, behind = (ndimage.map_coordinates(magnitude, here + s * step, order=1, mode="nearest") for s in (1, -1))
    # neighbours that are equal but for rounding are one ridge
    strength = magnitude * (1 + ROUNDING)
    ridge = region & (strength >= ahead) & (strength >= behind) & (magnitude > 0)
    threshold = np.quantile(magnitude[region], 1 - share)
    edges: Mask3 = ridge & (strength >= threshold)
    return edges
