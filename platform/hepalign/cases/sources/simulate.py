"""A real CT becomes a pCT and an iCT of one patient: known motion, a probe, and no voxel of noise in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.phantom.ablation import burn, draw_ablation
from hepalign.cases.phantom.acquire import AIR_HU, add_table, ct_noise, store_hu
from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.insertion import insert_probe
from hepalign.cases.phantom.lattice import Lattice, smooth_noise
from hepalign.cases.phantom.make import FIELD_OF_VIEW_MM, Streams, on_side, session
from hepalign.cases.phantom.motion import Motion, apply_linear, draw_motion
from hepalign.cases.phantom.needles import GAS_HU, grid_points
from hepalign.cases.sources.patient import Patient, find_body, prepare
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

Array = NDArray[np.float32]
Point = NDArray[np.float64]

MARGIN_MM = 40.0
# A patient wider than the phantom's field of view has this much air around.
AROUND_BODY_MM = 30.0
# Where breathing does not slide, it fades out towards the skin.
SKIN_DEPTH_MM = 12.0
LANDMARKS, LANDMARKS_APART_MM = 40, 12.0
FEWEST_POINTS = 100


def simulate_pair(
    ct: Volume,
    liver: Volume | None,
    seed: int,
    phase: bool = False,
    *,
    tumour: Volume | None = None,
    shape: tuple[int, int, int] = (128, 128, 96),
    spacing_mm: float | None = None,
    sliding: bool = False,
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
        spacing_mm: isotropic; by default the first axis spans 358 mm, or the body where that is wider.
        sliding: the organs glide along the wall; otherwise breathing fades out smoothly towards it, and nothing folds.
        config: ranges of motion and probes; the hard mode by default.

    Raises:
        BadInputError: as `patient.prepare`.
    """
    config = config or PhantomConfig()
    body = find_body(ct)
    spacing = spacing_mm or max(FIELD_OF_VIEW_MM, body.width_mm + AROUND_BODY_MM) / shape[0]
    patient = prepare(ct, liver, tumour, spacing)
    half = (np.array(shape) - 1) / 2 * spacing
    # Across, the body is in the middle; along it, the liver.
    middle = np.array([*body.middle[:2], patient.centre[2]])
    geometry = Geometry.from_spacing(shape, spacing, origin_mm=middle - half)
    streams = Streams(seed)
    inner = _liver_points(patient)
    motions = _draw_motions(streams, patient, body.middle, inner, config, sliding)
    points = {role: motion.to_anatomy(grid_points(geometry)) for role, motion in motions.items()}
    volumes: dict[str, Volume] = {}
    for role in motions:
        _labels(patient, points[role], role, geometry, liver is not None, volumes)
    _scan_pct(streams, patient, points["pct"], config, geometry, volumes)
    scan = _scan_ict(streams, patient, motions["ict"], points["ict"], inner, phase, config, geometry, volumes)
    moved = motions["pct"].from_anatomy(points["ict"]) - grid_points(geometry)
    vectors = np.ascontiguousarray(np.moveaxis(moved, 0, -1), dtype=np.float32)
    linear = np.linalg.inv(motions["pct"].rigid) @ motions["ict"].rigid
    return PhantomCase(
        volumes,
        {"truth_field_ict_from_pct": DisplacementField(vectors, geometry, linear)},
        _landmarks(patient, motions, geometry),
        {"generator": "simulate", "seed": seed, "other_phase": phase, "sliding": sliding, **scan},
    )


def _scan_pct(
    streams: Streams,
    patient: Patient,
    points: Array,
    config: PhantomConfig,
    geometry: Geometry,
    volumes: dict[str, Volume],
) -> None:
    rng = streams.get("pct")
    clean = _sample(patient.ct, points, patient.centre, AIR_HU)
    clean = add_table(clean, patient.body.read(points)[0] < 0, geometry)
    noise = ct_noise(rng, geometry.shape, float(rng.uniform(*config.ct_noise_hu)), geometry.spacing_mm[0])
    volumes["pct"] = Volume(store_hu(clean + noise), geometry)


def _scan_ict(
    streams: Streams,
    patient: Patient,
    motion: Motion,
    points: Array,
    inner: Array,
    phase: bool,
    config: PhantomConfig,
    geometry: Geometry,
    volumes: dict[str, Volume],
) -> dict[str, object]:
    rng = streams.get("ict")
    clean = _sample(patient.ct, points, patient.centre, AIR_HU)
    if phase:
        clean = _other_phase(rng, clean, geometry.spacing_mm[0])
    aim = _target(rng, patient, inner)
    clean, ablated = _ablate(streams.get("ablation"), clean, points, aim, patient, config, geometry, volumes)
    target = motion.from_anatomy(aim.astype(np.float32)[:, None], iterations=30)[:, 0].astype(np.float64)
    body = np.asarray(patient.body.read(points)[0] < 0)
    clean = add_table(clean, body, geometry)
    noise = ct_noise(rng, geometry.shape, float(rng.uniform(*config.ct_noise_hu)), geometry.spacing_mm[0])

    def skin(world: Array) -> Array:
        return np.asarray(patient.body.read(motion.to_anatomy(world))[0])

    probe = insert_probe(rng, clean, target, skin, body, geometry, config)
    volumes["ict"] = Volume(store_hu(clean + noise + probe.difference), geometry)
    volumes["ict_clean"] = Volume(store_hu(clean), geometry)
    volumes["ict_probe_mask"] = Volume(probe.mask, geometry)
    return {**probe.attributes, "ablation": ablated}


def _ablate(
    rng: np.random.Generator,
    clean: Array,
    points: Array,
    aim: Point,
    patient: Patient,
    config: PhantomConfig,
    geometry: Geometry,
    volumes: dict[str, Volume],
) -> tuple[Array, bool]:
    """In some iCTs a zone is burnt where the probe aims."""
    if rng.uniform() >= config.ablation_share:
        return clean, False
    zone = draw_ablation(rng, aim, float(rng.uniform(*config.tumour_radius_mm)))
    liver = _warped_mask(patient.liver, patient, points) & (clean > GAS_HU)
    burnt, inside = burn(rng, clean, points, liver, zone, geometry.spacing_mm[0])
    volumes["ict_ablation"] = Volume(inside, geometry)
    return burnt, True


def _liver_points(patient: Patient) -> Array:
    """Points spread over the liver, in its frame, (3, N)."""
    geometry, liver = patient.liver.geometry, patient.liver.as_mask()
    for apart_mm in (8.0, 4.0, 0.0):
        stride = [max(1, round(apart_mm / s)) for s in geometry.spacing_mm]
        indices = np.argwhere(liver[:: stride[0], :: stride[1], :: stride[2]]) * stride
        if len(indices) >= FEWEST_POINTS:
            return np.ascontiguousarray((geometry.index_to_world(indices) - patient.centre).T, dtype=np.float32)
    message = f"the liver mask: {len(indices)} voxels are no liver; draw it whole or leave it out"
    raise BadInputError(message, code="empty_label")


def _draw_motions(
    streams: Streams, patient: Patient, middle: Point, inner: Array, config: PhantomConfig, sliding: bool
) -> dict[str, Motion]:
    rng = streams.get("simulate")
    to_frame = np.eye(4)
    to_frame[:3, 3] = -patient.centre
    corners = patient.ct.geometry.corners_mm() - patient.centre
    rigid = {role: session(rng, config, np.zeros(3), share) @ to_frame for role, share in (("pct", 0.3), ("ict", 1.0))}
    axis = (middle - patient.centre) * [1, 1, 0]
    rigid["ict"] = on_side(streams.get("pose"), config, axis) @ rigid["ict"]
    ict = draw_motion(
        rng,
        low_mm=corners.min(0) - MARGIN_MM,
        high_mm=corners.max(0) + MARGIN_MM,
        cavity=lambda p: patient.cavity.read(p)[0] if sliding else patient.body.read(p)[0] + SKIN_DEPTH_MM,
        breathing_mm=float(rng.choice([-1, 1]) * rng.uniform(*config.breathing_mm)),
        rigid=rigid["ict"],
        residual_mm=float(rng.uniform(*config.rigid_residual_mm)),
        liver_points=inner,
        sliding=sliding,
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
    patient: Patient, points: Array, role: str, geometry: Geometry, has_liver: bool, volumes: dict[str, Volume]
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


def _warped_mask(mask: Volume, patient: Patient, points: Array) -> NDArray[np.bool_]:
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


def _target(rng: np.random.Generator, patient: Patient, inner: Array) -> Point:
    """The largest tumour's middle, else a place well inside the liver."""
    if patient.tumour is not None and np.asarray(patient.tumour.data).any():
        labels = np.asarray(patient.tumour.data).astype(np.int64)
        largest = np.bincount(labels[labels > 0]).argmax()
        middle = np.argwhere(labels == largest).mean(0)
        return np.asarray(patient.tumour.geometry.index_to_world(middle) - patient.centre)
    liver = patient.liver.as_mask()
    box = ndimage.find_objects(liver.astype(np.uint8))[0]
    inside = ndimage.distance_transform_edt(liver[box], sampling=patient.liver.geometry.spacing_mm)
    index = np.rint(patient.liver.geometry.world_to_index(inner.T + patient.centre)).astype(int)
    depth = inside[tuple((index - [part.start for part in box]).T)]
    deep = np.flatnonzero(depth >= min(15.0, 0.8 * depth.max()))
    return np.asarray(inner[:, int(rng.choice(deep))], np.float64)


def _landmarks(patient: Patient, motions: dict[str, Motion], geometry: Geometry) -> dict[str, Landmarks]:
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
