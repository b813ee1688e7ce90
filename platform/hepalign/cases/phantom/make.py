"""One phantom case from one seed: pMR, pCT and iCT of a made-up person, with everything known about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.phantom import acquire
from hepalign.cases.phantom.ablation import draw_ablation
from hepalign.cases.phantom.anatomy import Anatomy, draw_anatomy
from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.draft import Organ
from hepalign.cases.phantom.insertion import insert_probe
from hepalign.cases.phantom.motion import Motion, draw_motion, rigid_about
from hepalign.cases.phantom.needles import grid_points
from hepalign.cases.phantom.randomise import random_ct_look, random_mr_look
from hepalign.cases.phantom.render import Painter
from hepalign.cases.phantom.tissues import SEQUENCES, Look, Phase, Sequence, ct_look, mr_look
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

Array = NDArray[np.float32]
Point = NDArray[np.float64]

DEFAULT_SHAPE = (128, 128, 96)
FIELD_OF_VIEW_MM = 358.4
SHORT_ICT_MM = 150.0
LIVER_SAMPLE_MM = 9.0
# The peritoneum and a little muscle glide with the organs; the ribs, just outside, do not.
SLIDING_LAYER_MM = 1.5
# What moves is described this far from the liver; beyond, the border's motion goes on.
MOVING_HALF_MM = np.array([195.0, 155.0, 175.0])


def make_case(
    seed: int,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing_mm: float | None = None,
    randomised: bool = False,
    config: PhantomConfig | None = None,
) -> PhantomCase:
    """Makes the case of a seed; the same seed and arguments give the same bits.

    Args:
        seed: chooses the person, the motions, the scans.
        shape: (D, H, W) of the images.
        spacing_mm: isotropic; by default the shape's first axis spans a field of view of 358 mm.
        randomised: random intensities per organ (as the config's own word).
        config: ranges; the hard mode by default.
    """
    config = config or PhantomConfig()
    streams = Streams(seed)
    anatomy = draw_anatomy(streams.get("anatomy"), config)
    motions = draw_motions(streams.get("motion"), anatomy, config)
    scans = _draw_scans(streams.get("scan"), anatomy, config, randomised or config.randomised)
    spacing = FIELD_OF_VIEW_MM / shape[0] if spacing_mm is None else float(spacing_mm)
    geometries = _draw_geometries(streams.get("grids"), shape, spacing, config)
    points = {role: motions[role].to_anatomy(grid_points(geometries[role])) for role in motions}
    volumes: dict[str, Volume] = {}
    _scan_pmr(streams.get("pmr"), anatomy, points["pmr"], geometries["pmr"], scans, volumes)
    _scan_pct(streams.get("pct"), anatomy, points["pct"], geometries["pct"], scans, volumes)
    probe = _scan_ict(streams, anatomy, motions["ict"], points["ict"], geometries["ict"], scans, config, volumes)
    return PhantomCase(
        volumes,
        _truth(motions, points, geometries),
        _place_landmarks(anatomy, motions, geometries),
        {"generator": "phantom", "seed": seed, **scans.attributes, **probe, **anatomy.facts},
    )


@dataclass(frozen=True)
class Streams:
    """Independent random streams of one seed, so that one choice does not shift another."""

    seed: int

    def get(self, name: str) -> np.random.Generator:
        """The stream of a name, from its beginning."""
        return np.random.default_rng([self.seed, *name.encode()])


@dataclass(frozen=True)
class _Scans:
    """How the three images are taken."""

    pct: Look
    ict: Look
    pmr: Look
    noise_hu: tuple[float, float]
    mr_noise: float
    mr_slice_mm: float
    mr_shading: float
    ablated: bool
    attributes: dict[str, object]


def draw_motions(rng: np.random.Generator, anatomy: Anatomy, config: PhantomConfig) -> dict[str, Motion]:
    """By role: pCT is how the anatomy lies; pMR and iCT each breathe, bend and lie differently."""
    points = liver_sample(anatomy)
    centre = points.mean(1).astype(np.float64)
    motions = {"pct": Motion(session(rng, config, centre, 0.3))}
    for role in ("pmr", "ict"):
        rigid = session(rng, config, centre, 1.0)
        if role == "ict":
            rigid = on_side(rng, config, centre * [0, 0, 1]) @ rigid
        motions[role] = draw_motion(
            rng,
            low_mm=-MOVING_HALF_MM,
            high_mm=MOVING_HALF_MM,
            cavity=lambda p: anatomy.cavity(anatomy.shape_points(p)) - SLIDING_LAYER_MM,
            breathing_mm=float(rng.choice([-1, 1]) * rng.uniform(*config.breathing_mm)),
            rigid=rigid,
            residual_mm=float(rng.uniform(*config.rigid_residual_mm)),
            liver_points=points,
        )
    return motions


def on_side(rng: np.random.Generator, config: PhantomConfig, axis_mm: Point) -> Point:
    """4 x 4, of some patients, who were turned on a side about the body's long axis; else the identity."""
    if rng.uniform() >= config.on_side_share:
        return np.eye(4)
    turn_deg = rng.choice([-1, 1]) * rng.uniform(*config.on_side_deg)
    return rigid_about(axis_mm, np.array([0, 0, turn_deg]), np.zeros(3))


def session(rng: np.random.Generator, config: PhantomConfig, centre: Point, share: float) -> Point:
    """4 x 4: how the patient lies in another session, within a share of the largest angles and shifts."""
    angles = rng.uniform(-1, 1, 3) * config.session_rotation_deg * share
    shift = rng.uniform(-1, 1, 3) * config.session_shift_mm * share
    return rigid_about(centre, angles, shift)


def liver_sample(anatomy: Anatomy) -> Array:
    """Anatomy points spread over the liver, (3, N)."""
    axes = [np.arange(-150.0, 170.0, LIVER_SAMPLE_MM) for _ in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
    inside = anatomy.liver(anatomy.shape_points(points)) < 0
    return np.ascontiguousarray(points[:, inside])


def _draw_scans(rng: np.random.Generator, anatomy: Anatomy, config: PhantomConfig, randomised: bool) -> _Scans:
    steatosis_hu = float(rng.uniform(10, 35)) if rng.uniform() < config.steatosis_share else 0.0
    pct_phase = cast(Phase, str(rng.choice(["portal", "portal", "portal", "arterial", "delayed"])))
    ict_phase = cast(Phase, str(rng.choice(["unenhanced", "unenhanced", "unenhanced", "delayed"])))
    sequence = cast(Sequence, str(rng.choice(SEQUENCES)))
    if randomised:
        looks = random_ct_look(rng), random_ct_look(rng), random_mr_look(rng)
    else:
        looks = (
            ct_look(rng, pct_phase, steatosis_hu),
            ct_look(rng, ict_phase, steatosis_hu),
            mr_look(rng, sequence, steatosis_hu),
        )
    ablated = bool(rng.uniform() < config.ablation_share) and bool(anatomy.tumours)
    return _Scans(
        *looks,
        noise_hu=(float(rng.uniform(*config.ct_noise_hu)), float(rng.uniform(*config.ct_noise_hu))),
        mr_noise=float(rng.uniform(*config.mr_noise)),
        mr_slice_mm=float(rng.uniform(*config.mr_slice_mm)),
        mr_shading=float(rng.uniform(*config.mr_shading)),
        ablated=ablated,
        attributes={
            "randomised": randomised,
            "steatosis_hu": round(steatosis_hu, 1),
            "pct_phase": "random" if randomised else pct_phase,
            "ict_phase": "random" if randomised else ict_phase,
            "mr_sequence": "random" if randomised else sequence,
            "ablation": ablated,
        },
    )


def _draw_geometries(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: float, config: PhantomConfig
) -> dict[str, Geometry]:
    shared = _centred(shape, (spacing, spacing, spacing), np.eye(3))
    if config.grids == "shared":
        return dict.fromkeys(("pct", "pmr", "ict"), shared)
    slice_mm = float(rng.uniform(*config.mr_slice_mm))
    oblique = rigid_about(np.zeros(3), rng.uniform(-12, 12, 3) * (1, 1, 0.4), np.zeros(3))[:3, :3]
    slices = max(8, round(shape[2] * spacing / slice_mm))
    pmr = _centred((shape[0], shape[1], slices), (spacing, spacing, slice_mm), oblique)
    short = min(shape[2], max(8, round(SHORT_ICT_MM / spacing)))
    return {"pct": shared, "pmr": pmr, "ict": _centred((shape[0], shape[1], short), (spacing,) * 3, np.eye(3))}


def _centred(shape: tuple[int, int, int], spacing_mm: tuple[float, ...], direction: Point) -> Geometry:
    corner = direction @ ((np.array(shape) - 1) / 2 * np.array(spacing_mm))
    return Geometry.from_spacing(shape, spacing_mm, origin_mm=-corner, direction=direction)


def _scan_pmr(
    rng: np.random.Generator,
    anatomy: Anatomy,
    points: Array,
    geometry: Geometry,
    scans: _Scans,
    volumes: dict[str, Volume],
) -> None:
    painter = _paint(anatomy, points, geometry, [scans.pmr, scans.pct], "pmr", volumes)
    # Averages over the slice on a fine grid; on a clinical grid, whose slices are as thick, it samples at their middle.
    slice_voxels = scans.mr_slice_mm / geometry.spacing_mm[2]
    mr = acquire.mr_acquisition(
        rng, painter.images[0], noise=scans.mr_noise, slice_voxels=slice_voxels, shading=scans.mr_shading
    )
    volumes["pmr"] = Volume(mr, geometry)
    volumes["pmr_true_ct"] = Volume(acquire.store_hu(painter.images[1]), geometry)


def _scan_pct(
    rng: np.random.Generator,
    anatomy: Anatomy,
    points: Array,
    geometry: Geometry,
    scans: _Scans,
    volumes: dict[str, Volume],
) -> None:
    painter = _paint(anatomy, points, geometry, [scans.pct], "pct", volumes)
    image = acquire.add_table(painter.images[0], painter.body(), geometry)
    noise = acquire.ct_noise(rng, geometry.shape, scans.noise_hu[0], geometry.spacing_mm[0])
    volumes["pct"] = Volume(acquire.store_hu(image + noise), geometry)


def _scan_ict(
    streams: Streams,
    anatomy: Anatomy,
    motion: Motion,
    points: Array,
    geometry: Geometry,
    scans: _Scans,
    config: PhantomConfig,
    volumes: dict[str, Volume],
) -> dict[str, object]:
    burnt = (anatomy.tumour_centres[0], anatomy.tumour_radii_mm[0]) if scans.ablated else None
    extra = draw_ablation(streams.get("ablation"), *burnt) if burnt else []
    painter = _paint(anatomy, points, geometry, [scans.ict], "ict", volumes, extra)
    if extra:
        volumes["ict_ablation"] = Volume(painter.mask(extra[0]), geometry)
    body = painter.body()
    clean = acquire.add_table(painter.images[0], body, geometry)
    centre = anatomy.tumour_centres[0] if anatomy.tumour_centres else anatomy.landmark_points[0]
    target = motion.from_anatomy(anatomy.from_shape(centre[:, None].astype(np.float32)))[:, 0].astype(np.float64)

    def skin(world: Array) -> Array:
        return anatomy.body(anatomy.shape_points(motion.to_anatomy(world)))

    probe = insert_probe(streams.get("probe"), clean, target, skin, body, geometry, config)
    noise = acquire.ct_noise(streams.get("ict"), geometry.shape, scans.noise_hu[1], geometry.spacing_mm[0])
    volumes["ict"] = Volume(acquire.store_hu(clean + noise + probe.difference), geometry)
    volumes["ict_clean"] = Volume(acquire.store_hu(clean), geometry)
    volumes["ict_probe_mask"] = Volume(probe.mask, geometry)
    return probe.attributes


def _paint(
    anatomy: Anatomy,
    points: Array,
    geometry: Geometry,
    looks: list[Look],
    role: str,
    volumes: dict[str, Volume],
    extra: list[Organ] | None = None,
) -> Painter:
    painter = Painter(anatomy, points, max(geometry.spacing_mm[:2]), looks)
    liver = np.zeros(geometry.shape, bool)
    tumours = np.zeros(geometry.shape, np.uint8)
    for organ in [*anatomy.organs, *(extra or [])]:
        inside = painter.paint(organ)
        if inside is None:
            continue
        if organ.name == "liver":
            liver[inside[0]] = inside[1]
        elif organ.tissue == "tumour":
            tumours[inside[0]][inside[1]] = int(organ.name.rsplit("_", 1)[1])
    volumes[f"{role}_liver"] = Volume(liver | (tumours > 0), geometry)
    volumes[f"{role}_tumour"] = Volume(tumours, geometry)
    return painter


def _place_landmarks(
    anatomy: Anatomy, motions: dict[str, Motion], geometries: dict[str, Geometry]
) -> dict[str, Landmarks]:
    """The anatomy's landmarks in every image; only those that lie in all of them."""
    target = anatomy.from_shape(anatomy.landmark_points.T.astype(np.float32))
    placed = {role: motion.from_anatomy(target, iterations=40).T.astype(np.float64) for role, motion in motions.items()}
    everywhere = np.all([geometries[role].contains(points) for role, points in placed.items()], axis=0)
    names = tuple(name for name, kept in zip(anatomy.landmark_names, everywhere, strict=True) if kept)
    return {role: Landmarks(names, points[everywhere]) for role, points in placed.items()}


def _truth(
    motions: dict[str, Motion], points: dict[str, Array], geometries: dict[str, Geometry]
) -> dict[str, DisplacementField]:
    fields = {}
    for fixed, moving in (("ict", "pct"), ("pct", "pmr"), ("ict", "pmr")):
        moved = motions[moving].from_anatomy(points[fixed]) - grid_points(geometries[fixed])
        vectors = np.ascontiguousarray(np.moveaxis(moved, 0, -1), dtype=np.float32)
        linear = np.linalg.inv(motions[moving].rigid) @ motions[fixed].rigid
        fields[f"truth_field_{fixed}_from_{moving}"] = DisplacementField(vectors, geometries[fixed], linear)
    return fields
