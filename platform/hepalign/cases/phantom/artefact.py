"""Metal artefacts made where they arise: in the projections.

Each slice a needle touches is projected (parallel beam over half a turn, as scanners rebin their fan to), the signal
is that of a 120 kVp spectrum through water, bone and metal, photons starve, and the difference between the filtered
back projections with and without metal is added to the clean slice: what no needle touches stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

Array = NDArray[np.float32]
Metal = Literal["steel", "titanium"]

MU_WATER_PER_CM = 0.192
ENERGIES_KEV = np.array([40.0, 50.0, 60.0, 80.0, 100.0])
# Photon share of a filtered 120 kVp tungsten spectrum in those bins.
SPECTRUM = np.array([0.12, 0.22, 0.27, 0.25, 0.14])
# Linear attenuation per cm: NIST XCOM mass attenuation times density.
WATER = np.array([0.2683, 0.2269, 0.2059, 0.1837, 0.1707])
BONE = np.array([0.6655, 0.4242, 0.3148, 0.2229, 0.1855]) * 1.92
METALS: dict[Metal, NDArray[np.float64]] = {
    "steel": np.array([3.629, 1.958, 1.205, 0.5952, 0.3717]) * 7.874,
    "titanium": np.array([2.214, 1.213, 0.7661, 0.4052, 0.2721]) * 4.54,
}
BONE_ONSET_HU, BONE_FULL_HU = 250.0, 1250.0
ELECTRONIC_NOISE_PHOTONS = 8.0


@dataclass(frozen=True)
class Scan:
    """How the intra-procedural scan is made.

    Args:
        photons: per ray, 1e5 to 1e6.
        views: over half a turn (320 of them are a fan beam's 640 a turn).
        metal: what the needles are made of.
    """

    photons: float = 3e5
    views: int = 320
    metal: Metal = "steel"


def add_artefact(rng: np.random.Generator, ct_hu: Array, metal_share: Array, spacing_mm: float, scan: Scan) -> Array:
    """The difference image (HU, D H W) that needles make of a clean CT.

    Args:
        rng: draws the starved rays' noise.
        ct_hu: clean CT, slices along the last axis, in-plane voxels square.
        metal_share: volume share of metal per voxel, 0 to 1.
        spacing_mm: in-plane voxel size.
        scan: spectrum and dose.
    """
    difference = np.zeros_like(ct_hu, dtype=np.float32)
    touched = np.flatnonzero(metal_share.any(axis=(0, 1)))
    if not touched.size:
        return difference
    shape = (ct_hu.shape[0], ct_hu.shape[1])
    back_projector = _back_projector(shape, scan.views)
    projector = back_projector.T
    slices, metal = ct_hu[:, :, touched].reshape(-1, touched.size), metal_share[:, :, touched].reshape(-1, touched.size)
    water_cm, bone_cm = _material_paths(projector, slices, spacing_mm)
    metal_cm = np.asarray(projector @ metal) * np.float32(spacing_mm / 10)
    change = _sinogram_change(rng, water_cm, bone_cm, metal_cm, scan)
    image = _filtered_back_projection(back_projector, change, shape, scan.views, spacing_mm / 10)
    difference[:, :, touched] = image.reshape(*shape, touched.size) * np.float32(1000 / MU_WATER_PER_CM)
    return difference


def _material_paths(projector: csc_matrix, slices: Array, spacing_mm: float) -> tuple[Array, Array]:
    density = np.clip(1 + slices / 1000, 0, 3).astype(np.float32)
    bone = np.clip((slices - BONE_ONSET_HU) / (BONE_FULL_HU - BONE_ONSET_HU), 0, 1).astype(np.float32)
    step_cm = np.float32(spacing_mm / 10)
    both = np.asarray(projector @ np.concatenate([density * (1 - bone), bone], axis=1)) * step_cm
    return both[:, : slices.shape[1]], both[:, slices.shape[1] :]


def _sinogram_change(rng: np.random.Generator, water_cm: Array, bone_cm: Array, metal_cm: Array, scan: Scan) -> Array:
    """Measured minus clean line integrals (per cm × cm, water-corrected), zero off the metal's shadow."""
    change = np.zeros_like(water_cm)
    hit = metal_cm > 1e-4
    water, bone, metal = water_cm[hit], bone_cm[hit], metal_cm[hit]
    clean = _transmission(water, bone, np.zeros_like(metal), scan.metal)
    struck = _transmission(water, bone, metal, scan.metal)
    photons = scan.photons * struck
    noisy = photons + np.sqrt(photons + ELECTRONIC_NOISE_PHOTONS**2) * rng.standard_normal(photons.shape)
    floor = 1.5
    measured = np.maximum(noisy, floor) / scan.photons
    change[hit] = _water_corrected(measured) - _water_corrected(clean)
    return change


def _transmission(water_cm: Array, bone_cm: Array, metal_cm: Array, metal: Metal) -> NDArray[np.float64]:
    total = np.zeros(water_cm.shape)
    for share, w, b, m in zip(SPECTRUM, WATER, BONE, METALS[metal], strict=True):
        total += share * np.exp(-(w * water_cm + b * bone_cm + m * metal_cm))
    return total


def _water_corrected(transmission: NDArray[np.float64]) -> Array:
    """The line integral at 70 keV of the water that lets as much through (the scanner's first correction)."""
    water_cm = np.linspace(0, 120, 2401)
    curve = np.log((SPECTRUM[None] * np.exp(-water_cm[:, None] * WATER[None])).sum(1))
    equivalent = np.interp(-np.log(transmission), -curve, water_cm)
    return np.asarray(equivalent * MU_WATER_PER_CM, np.float32)


def _filtered_back_projection(
    back_projector: csr_matrix, sinogram: Array, shape: tuple[int, int], views: int, step_cm: float
) -> Array:
    bins = sinogram.shape[0] // views
    padded = 1 << (2 * bins - 1).bit_length()
    # Kak & Slaney, eq. 3.61: the band-limited ramp in space, so that the mean comes out right.
    offsets = np.fft.fftfreq(padded, 1 / padded).astype(int)
    kernel = np.zeros(padded)
    kernel[offsets == 0] = 0.25
    odd = offsets % 2 == 1
    kernel[odd] = -1 / (np.pi * offsets[odd]) ** 2
    # Splitting a pixel between two bins, there and back, blurs by sinc⁴: undo that, then roll off (Hann).
    cycles = np.linspace(0, 0.5, padded // 2 + 1)
    window = 0.5 * (1 + np.cos(2 * np.pi * cycles)) / np.sinc(cycles) ** 4
    response = np.fft.rfft(kernel).real * window
    spectrum = np.fft.rfft(sinogram.reshape(views, bins, -1), padded, axis=1)
    filtered = np.fft.irfft(spectrum * response[None, :, None], padded, axis=1)[:, :bins] / step_cm
    image = back_projector @ filtered.reshape(views * bins, -1).astype(np.float32)
    return np.asarray(image * np.float32(np.pi / views), np.float32)


@lru_cache(maxsize=1)
def _back_projector(shape: tuple[int, int], views: int) -> csr_matrix:
    """Back projection by linear interpolation, (pixels, views × bins); one pixel the unit of length and of a bin.

    Its transpose projects: a pixel's shadow is split linearly between two bins.
    """
    bins = int(np.ceil(np.hypot(*shape))) + 3
    x, y = (axis.ravel() for axis in np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    columns = np.empty((x.size, views, 2), np.int32)
    weights = np.empty((x.size, views, 2), np.float32)
    for view in range(views):
        angle = np.pi * view / views
        position = x * np.cos(angle) + y * np.sin(angle) + (bins - 1) / 2
        low = np.floor(position)
        columns[:, view, 0] = view * bins + low
        weights[:, view, 1] = position - low
    columns[:, :, 1] = columns[:, :, 0] + 1
    weights[:, :, 0] = 1 - weights[:, :, 1]
    starts = np.arange(x.size + 1, dtype=np.int64) * 2 * views
    return csr_matrix((weights.ravel(), columns.ravel(), starts), shape=(x.size, views * bins))
