"""Small cases with a known truth: an ellipsoid body with a wavy texture, moved by one voxel."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.landmarks import Landmarks
from hepalign.cases.writer import CohortWriter
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

SHAPE = (40, 36, 32)
SPACING_MM = 4.0
# ict(x) = pct(x - STEP_MM): the iCT's point x lies at x - STEP_MM in the pCT
STEP_MM = (4.0, 0.0, -4.0)


class ToyCase(TypedDict):
    volumes: dict[str, Volume]
    fields: dict[str, DisplacementField]
    landmarks: dict[str, Landmarks]
    attributes: dict[str, object]


def toy_case(seed: int) -> ToyCase:
    """One case with every file; noiseless, so that a right warp is exact."""
    rng = np.random.default_rng(seed)
    geometry = Geometry.from_spacing(SHAPE, SPACING_MM, origin_mm=(-70, -60, -50))
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    body = _ellipsoid(index, (0.5, 0.5, 0.5), (15, 13, 40))
    phase = rng.uniform(0, 6, 3)
    ct = np.where(body, 40 + 60 * np.sin(index / (3.0, 4.0, 5.0) + phase).prod(axis=-1), -1000.0)
    liver = _ellipsoid(index, (0.6, 0.5, 0.5), (6, 6, 6))
    probe = np.zeros(SHAPE, bool)
    probe[18:30, 16:19, 15:18] = True
    ict_clean = _moved(ct)
    ict = np.where(probe, 3000.0, ict_clean)
    volumes = {
        "pmr": 500 + ct / 2,
        "pmr_true_ct": ct,
        "pct": ct,
        "ict": ict,
        "ict_clean": ict_clean,
        "pmr_liver": liver,
        "pct_liver": liver,
        "ict_liver": _moved(liver),
        "pct_tumour": (2 * _ellipsoid(index, (0.6, 0.5, 0.5), (2, 2, 2))).astype(np.uint8),
        "ict_probe_mask": probe,
    }
    step = -np.broadcast_to(np.array(STEP_MM, np.float32), (*SHAPE, 3))
    points = np.array([[0.0, 0.0, 0.0], [20.0, -8.0, 12.0]])
    return {
        "volumes": {name: Volume(data, geometry) for name, data in volumes.items()},
        "fields": {
            "truth_field_ict_from_pct": DisplacementField(np.ascontiguousarray(step), geometry),
            "truth_field_pct_from_pmr": DisplacementField.identity(geometry),
        },
        "landmarks": {"pct": Landmarks(("a", "b"), points), "ict": Landmarks(("a", "b"), points + STEP_MM)},
        "attributes": {"seed": seed, "phase": "venous" if seed % 2 else "native"},
    }


def toy_cohort(out: Path | str, cases: int = 4) -> None:
    """A cohort of toy cases, one a patient."""
    writer = CohortWriter(out)
    for seed in range(cases):
        writer.add(f"case-{seed}", f"patient-{seed}", **toy_case(seed))
    writer.finish()


def _ellipsoid(
    index: NDArray[np.intp], middle: tuple[float, float, float], half: tuple[float, float, float]
) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.linalg.norm((index - np.array(SHAPE) * middle) / half, axis=-1) < 1
    return inside


def _moved(data: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.roll(data, (1, 0, -1), axis=(0, 1, 2))
