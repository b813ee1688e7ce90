"""One phantom case from one seed: pMR, pCT and iCT of a made-up person, with everything known about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.phantom.acquire import ct_noise, mr_acquisition, store_hu
from hepalign.cases.phantom.anatomy import HIGH_MM, LOW_MM, Anatomy, Organ, draw_anatomy
from hepalign.cases.phantom.artefact import Scan, add_artefact
from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.motion import Motion, draw_motion, rigid_about
from hepalign.cases.phantom.needles import coarse_mask, draw_needles, metal_share
from hepalign.cases.phantom.randomise import random_ct_look, random_mr_look
from hepalign.cases.phantom.render import Painter, paint_all
from hepalign.cases.phantom.tissues import SEQUENCES, Look, Phase, Sequence, ct_look, mr_look
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

Array = NDArray[np.float32]

DEFAULT_SHAPE = (128, 128, 96)
FIELD_OF_VIEW_MM = 358.4
MASK_LIVER_POINTS = 1500


@dataclass(frozen=True)
class _Streams:
    """Independent random streams of one seed, so that one choice does not shift another."""

    seed: int

    def get(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])


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
        randomised: random intensities per organ (overrides the config's word).
        config: ranges; the hard mode by default.
    """
    config = config or PhantomConfig()
    randomised = randomised or config.randomised
    streams = _Streams(seed)
    spacing = FIELD_OF_VIEW_MM / shape[0] if spacing_mm is None else float(spacing_mm)
    geometry = Geometry.from_spacing(shape, spacing, origin_mm=-(np.array(shape) - 1) / 2 * spacing)
    anatomy = draw_anatomy(streams.get("anatomy"), config)
    motions = _draw_motions(streams, anatomy, config)
    return _assemble(streams, anatomy, motions, geometry, config, randomised)


def _draw_motions(streams: _Streams, anatomy: Anatomy, config: PhantomConfig) -> dict[str, Motion]:
    """pCT is how the anatomy lies; pMR and iCT each breathe, bend and lie differently."""
    rng = streams.get("motion")
    points = liver_sample(anatomy)
    centre = points.mean(1).astype(np.float64)
    motions = {"pct": Motion(_session(rng, config, centre, 0.3))}
    on_side = rng.uniform() < config.on_side_share
    for role in ("pmr", "ict"):
        turn = rng.choice([-1, 1]) * rng.uniform(*config.on_side_deg) if role == "ict" and on_side else 0.0
        rigid = _session(rng, config, centre, 1.0)
        if turn:
            rigid = rigid_about(centre * [0, 0, 1], np.array([0, 0, turn]), np.zeros(3)) @ rigid
        motions[role] = draw_motion(
            rng,
            low_mm=LOW_MM,
            high_mm=HIGH_MM,
            cavity=lambda p: anatomy.cavity(anatomy.shape_points(p)),
            breathing_mm=float(rng.choice([-1, 1]) * rng.uniform(*config.breathing_mm)),
            rigid=rigid,
            residual_mm=float(rng.uniform(*config.rigid_residual_mm)),
            liver_points=points,
        )
    return motions


def _session(
    rng: np.random.Generator, config: PhantomConfig, centre: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    angles = rng.uniform(-1, 1, 3) * config.session_rotation_deg * share
    shift = rng.uniform(-1, 1, 3) * config.session_shift_mm * share
    return rigid_about(centre, angles, shift)


def liver_sample(anatomy: Anatomy) -> Array:
    """Anatomy points spread over the liver, (3, N)."""
    axes = [np.arange(-150.0, 170.0, 9.0) for _ in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
    inside = anatomy.liver(anatomy.shape_points(points)) < 0
    return np.ascontiguousarray(points[:, inside])


def _assemble(
    streams: _Streams,
    anatomy: Anatomy,
    motions: dict[str, Motion],
    geometry: Geometry,
    config: PhantomConfig,
    randomised: bool,
) -> PhantomCase:
    rng = streams.get("scan")
    steatosis = float(rng.uniform(10, 35)) if rng.uniform() < config.steatosis_share else 0.0
    pct_phase: Phase = str(rng.choice(["portal", "portal", "portal", "arterial", "delayed"]))  # type: ignore[assignment]
    ict_phase: Phase = str(rng.choice(["unenhanced", "unenhanced", "unenhanced", "delayed"]))  # type: ignore[assignment]
    sequence: Sequence = str(rng.choice(SEQUENCES))  # type: ignore[assignment]
    pct_look = random_ct_look(rng) if randomised else ct_look(rng, pct_phase, steatosis)
    ict_look = random_ct_look(rng) if randomised else ct_look(rng, ict_phase, steatosis)
    pmr_look = random_mr_look(rng) if randomised else mr_look(rng, sequence, steatosis)
    sigma = {role: float(rng.uniform(*config.ct_noise_hu)) for role in ("pct", "ict")}

    points = {role: motion.to_anatomy(_grid(geometry)) for role, motion in motions.items()}
    volumes: dict[str, Volume] = {}
    spacing = min(geometry.spacing_mm)

    mr, true_ct = _render(anatomy, points["pmr"], spacing, [pmr_look, pct_look], "pmr", geometry, volumes)
    mr = mr_acquisition(
        streams.get("pmr"),
        mr,
        noise=float(rng.uniform(*config.mr_noise)),
        slice_voxels=float(rng.uniform(2.5, 6)) / spacing,
        shading=float(rng.uniform(0.05, 0.3)),
    )
    volumes["pmr"] = Volume(mr, geometry)
    volumes["pmr_true_ct"] = Volume(store_hu(true_ct), geometry)
    (pct,) = _render(anatomy, points["pct"], spacing, [pct_look], "pct", geometry, volumes)
    volumes["pct"] = Volume(
        store_hu(pct + ct_noise(streams.get("pct"), geometry.shape, sigma["pct"], spacing)), geometry
    )

    ablated = bool(rng.uniform() < config.ablation_share)
    extra = _ablation(streams.get("ablation"), anatomy) if ablated else []
    (clean,) = _render(anatomy, points["ict"], spacing, [ict_look], "ict", geometry, volumes, extra)
    needles = _insert_probe(streams, anatomy, motions["ict"], clean, sigma["ict"], geometry, config, volumes)
    if ablated:
        mask = Painter(anatomy, points["ict"], spacing, []).mask(extra[0])
        volumes["ict_ablation"] = Volume(mask, geometry)

    landmarks = _place_landmarks(anatomy, motions, geometry)
    fields = _truth(motions, points, geometry)
    attributes: dict[str, object] = {
        "generator": "phantom",
        "seed": streams.seed,
        "randomised": randomised,
        "steatosis_hu": round(steatosis, 1),
        "pct_phase": pct_phase,
        "ict_phase": ict_phase,
        "mr_sequence": sequence,
        "needles": needles,
        "ablation": ablated,
        **anatomy.facts,
    }
    return PhantomCase(volumes, fields, landmarks, attributes)


def _grid(geometry: Geometry) -> Array:
    return np.ascontiguousarray(np.moveaxis(geometry.grid_mm(), -1, 0), dtype=np.float32)


def _render(
    anatomy: Anatomy,
    points: Array,
    spacing: float,
    looks: list[Look],
    role: str,
    geometry: Geometry,
    volumes: dict[str, Volume],
    extra: list[Organ] | None = None,
) -> list[Array]:
    painter = Painter(anatomy, points, spacing, looks)
    paint_all(painter, [*anatomy.organs, *(extra or [])])
    liver = next(organ for organ in anatomy.organs if organ.name == "liver")
    tumours = np.zeros(geometry.shape, np.uint8)
    for organ in anatomy.organs:
        if organ.tissue == "tumour":
            tumours[painter.mask(organ)] = int(organ.name.rsplit("_", 1)[1])
    volumes[f"{role}_liver"] = Volume(painter.mask(liver) | (tumours > 0), geometry)
    volumes[f"{role}_tumour"] = Volume(tumours, geometry)
    return painter.images


def _ablation(rng: np.random.Generator, anatomy: Anatomy) -> list[Organ]:
    """An ablation zone over the first tumour, with gas bubbles in it."""
    from hepalign.cases.phantom import shapes

    centre, radius = anatomy.tumour_centres[0], anatomy.tumour_radii_mm[0]
    radii = (radius + rng.uniform(4, 8)) * rng.uniform(0.9, 1.25, 3)
    zone = Organ(
        "ablation", "ablation", lambda p: shapes.ellipsoid(p, centre, radii), centre - radii - 2, centre + radii + 2
    )
    organs = [zone]
    for number in range(int(rng.integers(3, 12))):
        place = centre + rng.normal(0, 0.35, 3) * radii
        bubble = rng.uniform(1.2, 3.2)
        organs.append(_bubble(number, place, bubble))
    return organs


def _bubble(number: int, place: NDArray[np.float64], radius: float) -> Organ:
    from hepalign.cases.phantom import shapes

    radii = np.full(3, radius)
    return Organ(
        f"bubble_{number}", "gas", lambda p: shapes.ellipsoid(p, place, radii), place - radius - 1, place + radius + 1
    )


def _insert_probe(
    streams: _Streams,
    anatomy: Anatomy,
    motion: Motion,
    clean: Array,
    sigma_hu: float,
    geometry: Geometry,
    config: PhantomConfig,
    volumes: dict[str, Volume],
) -> int:
    rng = streams.get("probe")
    target = anatomy.from_shape(anatomy.tumour_centres[0][:, None].astype(np.float32))
    target = motion.from_anatomy(target, iterations=30)[:, 0].astype(np.float64)
    count = int(rng.integers(config.needles[0], config.needles[1] + 1))
    needles = draw_needles(rng, count, target, lambda p: anatomy.body(anatomy.shape_points(motion.to_anatomy(p))))
    scan = Scan(
        photons=float(10 ** rng.uniform(5, 6)),
        views=320 if max(geometry.shape[:2]) <= 160 else 480,
        metal="steel" if rng.uniform() < 0.7 else "titanium",
    )
    share = metal_share(needles, geometry)
    difference = add_artefact(rng, clean, share, geometry.spacing_mm[0], scan)
    noise = ct_noise(streams.get("ict"), geometry.shape, sigma_hu, min(geometry.spacing_mm))
    body = anatomy.body(anatomy.shape_points(motion.to_anatomy(_grid(geometry)))) < 0
    volumes["ict"] = Volume(store_hu(clean + noise + difference), geometry)
    volumes["ict_clean"] = Volume(store_hu(clean), geometry)
    volumes["ict_probe_mask"] = Volume(coarse_mask(needles, difference, body, geometry), geometry)
    return count


def _place_landmarks(anatomy: Anatomy, motions: dict[str, Motion], geometry: Geometry) -> dict[str, Landmarks]:
    """The anatomy's landmarks in every image; only those that lie in all of them."""
    target = anatomy.from_shape(anatomy.landmark_points.T.astype(np.float32))
    placed = {role: motion.from_anatomy(target, iterations=40).T.astype(np.float64) for role, motion in motions.items()}
    everywhere = np.all([geometry.contains(points) for points in placed.values()], axis=0)
    names = tuple(name for name, kept in zip(anatomy.landmark_names, everywhere, strict=True) if kept)
    return {role: Landmarks(names, points[everywhere]) for role, points in placed.items()}


def _truth(motions: dict[str, Motion], points: dict[str, Array], geometry: Geometry) -> dict[str, DisplacementField]:
    grid = _grid(geometry)
    fields = {}
    for fixed, moving in (("ict", "pct"), ("pct", "pmr"), ("ict", "pmr")):
        moved = motions[moving].from_anatomy(points[fixed])
        vectors = np.ascontiguousarray(np.moveaxis(moved - grid, 0, -1), dtype=np.float32)
        fields[f"truth_field_{fixed}_from_{moving}"] = DisplacementField(vectors, geometry)
    return fields
