"""A real CT becomes a pCT and an iCT of one patient: known motion, a probe, and no voxel of noise in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.phantom.acquire import add_table, ct_noise, store_hu
from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.insertion import insert_probe
from hepalign.cases.phantom.lattice import Lattice, smooth_noise
from hepalign.cases.phantom.motion import Motion, apply_linear, draw_motion, rigid_about
from hepalign.cases.phantom.needles import grid_points
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import body_mask
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

Array = NDArray[np.float32]
Point = NDArray[np.float64]

AIR_HU = -1000.0
MARGIN_MM = 40.0
WORKING_SHARE = 0.6
SKIN_MARGIN_MM = 4.0
DISTANCE_STEP_MM = 5.0
LANDMARKS, LANDMARKS_APART_MM = 40, 12.0
# The guided filter smooths what varies less than this: noise, not organs' borders.
EDGE_HU = 35.0


@dataclass(frozen=True, eq=False)
class _Patient:
    """A real CT ready to be re-imaged: denoised, in a frame whose origin is the liver's middle."""

    ct: Volume
    liver: Volume
    tumour: Volume | None
    body: Lattice
    centre: Point


def simulate_pair(
    ct: Volume,
    liver: Volume | None,
    seed: int,
    phase: bool = False,
    *,
    tumour: Volume | None = None,
    shape: tuple[int, int, int] = (128, 128, 96),
    spacing_mm: float = 2.8,
    config: PhantomConfig | None = None,
) -> PhantomCase:
    """Makes a pCT/iCT pair of a real CT by the phantom's motion and probes.

    Args:
        ct: HU, any grid.
        liver: mask on any grid of the same frame; without one the body's right middle stands for it (and no liver
            is written).
        seed: chooses motion, probe and noise; the same seed gives the same bits.
        phase: the iCT in another contrast phase, by a smooth remap of soft tissue.
        tumour: mask of the tumours; the probe aims at the largest, else at a place inside the liver.
        shape: voxels of both images.
        spacing_mm: isotropic.
        config: ranges of motion and probes; the hard mode by default.

    Raises:
        BadInputError: `no_body` when the CT shows no patient, `empty_liver` when the mask is empty.
    """
    config = config or PhantomConfig()
    patient = _prepare(ct, liver, tumour, spacing_mm)
    half = (np.array(shape) - 1) / 2 * spacing_mm
    geometry = Geometry.from_spacing(shape, spacing_mm, origin_mm=_middle_mm(patient) - half)
    rng = np.random.default_rng([seed, *b"simulate"])
    inner = _liver_points(patient)
    motions = _draw_motions(rng, patient, inner, config)
    points = {role: motion.to_anatomy(grid_points(geometry)) for role, motion in motions.items()}
    volumes: dict[str, Volume] = {}
    for role in motions:
        _labels(patient, points[role], role, geometry, liver is not None, volumes)
    _scan_pct(seed, patient, points["pct"], config, geometry, volumes)
    probe = _scan_ict(seed, patient, motions["ict"], points["ict"], inner, phase, config, geometry, volumes)
    moved = motions["pct"].from_anatomy(points["ict"]) - grid_points(geometry)
    vectors = np.ascontiguousarray(np.moveaxis(moved, 0, -1), dtype=np.float32)
    linear = np.linalg.inv(motions["pct"].rigid) @ motions["ict"].rigid
    return PhantomCase(
        volumes,
        {"truth_field_ict_from_pct": DisplacementField(vectors, geometry, linear)},
        _landmarks(patient, motions, geometry),
        {"generator": "simulate", "seed": seed, "other_phase": phase, **probe},
    )


def _scan_pct(
    seed: int, patient: _Patient, points: Array, config: PhantomConfig, geometry: Geometry, volumes: dict[str, Volume]
) -> None:
    rng = np.random.default_rng([seed, *b"pct"])
    clean = _sample(patient.ct, points, patient.centre, AIR_HU)
    clean = add_table(clean, patient.body.read(points)[0] < 0, geometry)
    noise = ct_noise(rng, geometry.shape, float(rng.uniform(*config.ct_noise_hu)), geometry.spacing_mm[0])
    volumes["pct"] = Volume(store_hu(clean + noise), geometry)


def _scan_ict(
    seed: int,
    patient: _Patient,
    motion: Motion,
    points: Array,
    inner: Array,
    phase: bool,
    config: PhantomConfig,
    geometry: Geometry,
    volumes: dict[str, Volume],
) -> dict[str, object]:
    rng = np.random.default_rng([seed, *b"ict"])
    clean = _sample(patient.ct, points, patient.centre, AIR_HU)
    if phase:
        clean = _other_phase(rng, clean, geometry.spacing_mm[0])
    aim = _target(rng, patient, inner).astype(np.float32)[:, None]
    target = motion.from_anatomy(aim, iterations=30)[:, 0].astype(np.float64)
    body = np.asarray(patient.body.read(points)[0] < 0)
    clean = add_table(clean, body, geometry)
    noise = ct_noise(rng, geometry.shape, float(rng.uniform(*config.ct_noise_hu)), geometry.spacing_mm[0])

    def skin(world: Array) -> Array:
        return np.asarray(patient.body.read(motion.to_anatomy(world))[0])

    probe = insert_probe(rng, clean, target, skin, body, geometry, config)
    volumes["ict"] = Volume(store_hu(clean + noise + probe.difference), geometry)
    volumes["ict_clean"] = Volume(store_hu(clean), geometry)
    volumes["ict_probe_mask"] = Volume(probe.mask, geometry)
    return probe.attributes


def denoise(hu: Array) -> Array:
    """A guided filter with the image as its own guide (He et al. 2013): noise goes, borders stay."""
    image = np.clip(hu, -1024, 2000).astype(np.float32)
    for radius in (2, 1):
        size = 2 * radius + 1
        mean = ndimage.uniform_filter(image, size)
        variance = np.maximum(ndimage.uniform_filter(image * image, size) - mean * mean, 0)
        slope = variance / (variance + np.float32(EDGE_HU**2))
        offset = mean * (1 - slope)
        image = ndimage.uniform_filter(slope, size) * image + ndimage.uniform_filter(offset, size)
    return np.asarray(image, np.float32)


@lru_cache(maxsize=1)  # a cohort is many pairs of one CT
def _prepare(ct: Volume, liver: Volume | None, tumour: Volume | None, spacing_mm: float) -> _Patient:
    # A grid somewhat finer than the images to come: detail beyond theirs would only cost time.
    fine = float(np.clip(np.median(ct.geometry.spacing_mm), WORKING_SHARE * spacing_mm, spacing_mm))
    low, high = ct.geometry.corners_mm().min(0), ct.geometry.corners_mm().max(0)
    shape = tuple(int(n) for n in np.maximum(np.round((high - low) / fine) + 1, 2))
    grid = Geometry.from_spacing((shape[0], shape[1], shape[2]), fine, origin_mm=low)
    smooth = resample(ct.with_data(denoise(ct.as_float())), grid, fill=AIR_HU)
    body = body_mask(smooth).as_mask()
    if not body.any():
        raise BadInputError("the CT shows no patient: no body denser than air was found", code="no_body")
    # The couch stays behind: it must not bend with the patient.
    near = ndimage.binary_dilation(body, iterations=max(1, round(SKIN_MARGIN_MM / fine)))
    smooth = smooth.with_data(np.where(near, smooth.as_float(), np.float32(AIR_HU)))
    centre = _centre(body, liver, grid)
    return _Patient(smooth, liver or _stand_in_liver(body, grid), tumour, _body_distance(body, grid, centre), centre)


def _centre(body: NDArray[np.bool_], liver: Volume | None, grid: Geometry) -> Point:
    if liver is None:
        return grid.index_to_world(np.argwhere(body[::2, ::2, ::2]).mean(0) * 2)
    if not liver.as_mask().any():
        raise BadInputError("the liver mask is empty; leave it out or send the mask of this CT", code="empty_liver")
    return liver.geometry.index_to_world(np.argwhere(liver.as_mask()).mean(0))


def _stand_in_liver(body: NDArray[np.bool_], grid: Geometry) -> Volume:
    points = grid.grid_mm()
    inside = points[body]
    middle, half = inside.mean(0), np.ptp(inside, axis=0) / 2
    distance = (((points - middle - [0.4 * half[0], 0, 0]) / (half * [0.45, 0.6, 0.45])) ** 2).sum(-1)
    return Volume((distance < 1) & body, grid)


def _body_distance(body: NDArray[np.bool_], grid: Geometry, centre: Point) -> Lattice:
    """Signed distance of the skin, in the liver's frame; the body goes on above and below the scan."""
    step = max(1, round(DISTANCE_STEP_MM / grid.spacing_mm[0]))
    coarse = np.pad(body[::step, ::step, ::step], ((0, 0), (0, 0), (12, 12)), mode="edge")
    spacing = step * grid.spacing_mm[0]
    inside, outside = (ndimage.distance_transform_edt(m, sampling=spacing) for m in (coarse, ~coarse))
    origin = np.array(grid.origin_mm) - centre - np.array([0, 0, 12 * spacing])
    return Lattice((outside - inside).astype(np.float32)[None], origin, spacing)


def _middle_mm(patient: _Patient) -> Point:
    """Where the images are centred: the body across, the liver along."""
    geometry = patient.ct.geometry
    return np.array([*geometry.centre_mm[:2], patient.centre[2]])


def _liver_points(patient: _Patient) -> Array:
    """Points spread over the liver, in its frame, (3, N)."""
    geometry = patient.liver.geometry
    stride = [max(1, round(8.0 / s)) for s in geometry.spacing_mm]
    indices = np.argwhere(patient.liver.as_mask()[:: stride[0], :: stride[1], :: stride[2]]) * stride
    return np.ascontiguousarray((geometry.index_to_world(indices) - patient.centre).T, dtype=np.float32)


def _draw_motions(
    rng: np.random.Generator, patient: _Patient, inner: Array, config: PhantomConfig
) -> dict[str, Motion]:
    to_frame = np.eye(4)
    to_frame[:3, 3] = -patient.centre
    corners = patient.ct.geometry.corners_mm() - patient.centre
    rigid = {}
    for role, share in (("pct", 0.3), ("ict", 1.0)):
        angles = rng.uniform(-1, 1, 3) * config.session_rotation_deg * share
        shift = rng.uniform(-1, 1, 3) * config.session_shift_mm * share
        rigid[role] = rigid_about(np.zeros(3), angles, shift) @ to_frame
    ict = draw_motion(
        rng,
        low_mm=corners.min(0) - MARGIN_MM,
        high_mm=corners.max(0) + MARGIN_MM,
        cavity=lambda p: patient.body.read(p)[0] + 12,
        breathing_mm=float(rng.choice([-1, 1]) * rng.uniform(*config.breathing_mm)),
        rigid=rigid["ict"],
        residual_mm=float(rng.uniform(*config.rigid_residual_mm)),
        liver_points=inner,
        sliding=False,
    )
    return {"pct": Motion(rigid["pct"]), "ict": ict}


def _sample(volume: Volume, points: Array, centre: Point, fill: float) -> Array:
    """A volume's values, trilinear, at points (3, ...) of the liver's frame; `fill` beyond its voxels."""
    index = apply_linear(np.linalg.inv(volume.geometry.affine) @ _shift(centre), points)
    values: Array = Lattice(volume.as_float()[None], np.zeros(3), 1.0).read(index)[0]
    last = np.array(volume.geometry.shape, np.float32)[:, None, None, None] - np.float32(0.5)
    values[((index < -0.5) | (index > last)).any(axis=0)] = fill
    return values


def _shift(by_mm: Point) -> Point:
    matrix = np.eye(4)
    matrix[:3, 3] = by_mm
    return matrix


def _labels(
    patient: _Patient, points: Array, role: str, geometry: Geometry, has_liver: bool, volumes: dict[str, Volume]
) -> None:
    if has_liver:
        volumes[f"{role}_liver"] = Volume(_warped_mask(patient.liver, patient, points), geometry)
    if patient.tumour is not None:
        labels = np.zeros(geometry.shape, np.uint8)
        for label in np.unique(np.asarray(patient.tumour.data)):
            if label > 0:
                one = patient.tumour.with_data(np.asarray(patient.tumour.data) == label)
                labels[_warped_mask(one, patient, points)] = int(label)
        volumes[f"{role}_tumour"] = Volume(labels, geometry)


def _warped_mask(mask: Volume, patient: _Patient, points: Array) -> NDArray[np.bool_]:
    return np.asarray(_sample(mask.with_data(mask.as_mask()), points, patient.centre, 0.0) > 0.5)


def _other_phase(rng: np.random.Generator, hu: Array, spacing_mm: float) -> Array:
    """Soft tissue pulled towards, or away from, 45 HU by a factor that varies smoothly over the body."""
    strength = rng.choice([rng.uniform(0.15, 0.6), rng.uniform(1.3, 1.7)])
    variation = ndimage.zoom(smooth_noise(rng, 1, (10, 10, 8), 1.2)[0], np.array(hu.shape) / (10, 10, 8), order=1)
    factor = strength * (1 + 0.12 * variation)
    soft = np.clip((hu - 0) / 30, 0, 1) * np.clip((330 - hu) / 80, 0, 1)
    # Spongy bone has the HU of contrast: what lies beside compact bone is left alone.
    bone = ndimage.gaussian_filter((hu > 300).astype(np.float32), 6.0 / spacing_mm, truncate=2.5)
    weight = soft * np.clip(1 - 8 * bone, 0, 1)
    return np.asarray(hu + weight * (factor - 1) * (hu - 45), np.float32)


def _target(rng: np.random.Generator, patient: _Patient, inner: Array) -> Point:
    """The largest tumour's middle, else a place well inside the liver."""
    if patient.tumour is not None and np.asarray(patient.tumour.data).any():
        labels = np.asarray(patient.tumour.data).astype(np.int64)
        largest = np.bincount(labels[labels > 0]).argmax()
        middle = np.argwhere(labels == largest).mean(0)
        return np.asarray(patient.tumour.geometry.index_to_world(middle) - patient.centre)
    inside = ndimage.distance_transform_edt(patient.liver.as_mask(), sampling=patient.liver.geometry.spacing_mm)
    index = np.rint(patient.liver.geometry.world_to_index(inner.T + patient.centre)).astype(int)
    depth = inside[tuple(index.T)]
    deep = np.flatnonzero(depth >= min(15.0, 0.8 * depth.max()))
    return np.asarray(inner[:, int(rng.choice(deep))], np.float64)


def _landmarks(patient: _Patient, motions: dict[str, Motion], geometry: Geometry) -> dict[str, Landmarks]:
    """Places in the liver where the CT changes most (vessels, borders), kept apart, found in both images."""
    grid = patient.ct.geometry
    gradient = ndimage.gaussian_gradient_magnitude(np.clip(patient.ct.as_float(), -50, 250), 1.5)
    mask = resample(patient.liver.with_data(patient.liver.as_mask().astype(np.uint8)), grid, mode="nearest", fill=0)
    inside = ndimage.binary_erosion(mask.as_mask(), iterations=2)
    order = np.argsort(-gradient[inside], kind="stable")
    candidates = grid.index_to_world(np.argwhere(inside)[order]) - patient.centre
    target = _apart(candidates).T.astype(np.float32)
    placed = {role: motion.from_anatomy(target, iterations=40).T.astype(np.float64) for role, motion in motions.items()}
    kept = np.all([geometry.contains(points) for points in placed.values()], axis=0)
    names = tuple(f"liver_{number}" for number in np.flatnonzero(kept) + 1)
    return {role: Landmarks(names, points[kept]) for role, points in placed.items()}


def _apart(candidates: Point) -> Point:
    """The first candidates (N, 3) of which no two lie close."""
    chosen: list[Point] = []
    left = candidates
    while len(left) and len(chosen) < LANDMARKS:
        chosen.append(left[0])
        left = left[np.linalg.norm(left - left[0], axis=1) >= LANDMARKS_APART_MM]
    return np.array(chosen).reshape(-1, 3)
