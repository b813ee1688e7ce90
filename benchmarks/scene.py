"""A patient with a plan, at any size: what guide's benchmarks work on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.phantom import make_case
from hepalign.image.intensity import as_stored_ct
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle, load_bundle
from hepalign.inference.planner import Plan
from hepalign.tracking.resolution import resolve_release
from hepalign.transform.displacement import DisplacementField, resample_field, transform_points

# A larger scene is this one's images on a finer grid: what is timed is the same, and making it takes seconds.
DRAWN = (128, 128, 64)


@dataclass(frozen=True, eq=False)
class Scene:
    """One case: the plan (its field is the truth, so that only guide is judged), the iCT and what is known of it."""

    plan: Plan
    ict: Volume
    probe_mask: Volume
    landmarks: dict[str, Landmarks]

    def error_mm(self, field_ict_from_pct: DisplacementField) -> float:
        """Mean TRE of the case's landmarks, mm."""
        moved = transform_points(field_ict_from_pct, self.landmarks["ict"].points_mm)
        return float(np.linalg.norm(moved - self.landmarks["pct"].points_mm, axis=1).mean())


def release() -> Bundle:
    """What HEPALIGN_RELEASE names, else the champion, else the starter release."""
    return load_bundle(resolve_release(os.environ.get("HEPALIGN_RELEASE")))


def scene(shape: tuple[int, int, int], seed: int) -> Scene:
    """The phantom of a seed, drawn at most at `DRAWN` and resampled to `shape`."""
    drawn = shape if np.prod(shape) <= np.prod(DRAWN) else DRAWN
    made = make_case(seed, shape=drawn)

    def sized(name: str, *, mask: bool = False) -> Volume:
        volume = made.volumes[name]
        scale = [n / m for n, m in zip(shape, drawn, strict=True)]
        grown = tuple(round(n * s) for n, s in zip(volume.geometry.shape, scale, strict=True))
        geometry = volume.geometry.with_shape((grown[0], grown[1], grown[2]))
        return resample(volume, geometry, mode="nearest" if mask else "linear")

    # CTs as scanners store them: how large the files are and how they pack is a part of what is timed
    pct, ict, pmr = as_stored_ct(sized("pct")), as_stored_ct(sized("ict")), sized("pmr")
    labels = {name: sized(name, mask=True) for name in ("pct_liver", "pmr_tumour") if name in made.volumes}
    field = resample_field(made.fields["truth_field_pct_from_pmr"], pct.geometry)
    plan = Plan(pmr, pct, resample(pct, pmr.geometry), field, labels, "given", {"status": "accept"}, {}, {})
    return Scene(plan, ict, sized("ict_probe_mask", mask=True), dict(made.landmarks))
