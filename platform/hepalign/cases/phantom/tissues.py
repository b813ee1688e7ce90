"""What the tissues look like: CT numbers by contrast phase, MR signals by sequence, random look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Phase = Literal["unenhanced", "arterial", "portal", "delayed"]
PHASES: tuple[Phase, ...] = ("unenhanced", "arterial", "portal", "delayed")

# HU: unenhanced, arterial, portal venous, delayed.
CT_HU: dict[str, tuple[float, float, float, float]] = {
    "air": (-1000, -1000, -1000, -1000),
    "lung": (-850, -845, -845, -845),
    "gas": (-990, -990, -990, -990),
    "fat": (-100, -100, -100, -100),
    "muscle": (55, 58, 63, 62),
    "heart": (42, 190, 130, 95),
    "liver": (58, 68, 110, 90),
    "tumour": (45, 62, 66, 68),
    "ablation": (40, 42, 44, 44),
    "spleen": (45, 105, 120, 95),
    "kidney_cortex": (31, 160, 185, 140),
    "kidney_medulla": (29, 70, 160, 150),
    "pancreas": (40, 95, 90, 72),
    "bile": (5, 5, 6, 6),
    "fluid": (12, 12, 12, 12),
    "stool": (25, 25, 26, 26),
    "bowel_wall": (38, 65, 80, 70),
    "artery": (42, 290, 155, 115),
    "vein": (40, 48, 140, 115),
    "portal_vein": (41, 60, 165, 120),
    "hepatic_vein": (41, 46, 158, 118),
    "bone": (620, 620, 625, 625),
    "marrow": (190, 190, 205, 205),
    "disc": (75, 75, 80, 80),
}

# Relative proton density, T1 ms, T2 ms at 3 T.
MR_RELAXATION: dict[str, tuple[float, float, float]] = {
    "air": (0.0, 1000, 50),
    "lung": (0.12, 1200, 25),
    "gas": (0.0, 1000, 50),
    "fat": (0.95, 382, 68),
    "muscle": (0.85, 898, 29),
    "heart": (0.85, 1450, 60),
    "liver": (0.8, 809, 34),
    "tumour": (0.86, 1200, 75),
    "ablation": (0.75, 600, 30),
    "spleen": (0.88, 1328, 61),
    "kidney_cortex": (0.88, 1142, 76),
    "kidney_medulla": (0.92, 1545, 81),
    "pancreas": (0.85, 725, 43),
    "bile": (0.98, 2500, 400),
    "fluid": (1.0, 3000, 300),
    "stool": (0.6, 900, 60),
    "bowel_wall": (0.85, 1100, 55),
    "artery": (0.9, 1900, 150),
    "vein": (0.9, 1900, 110),
    "portal_vein": (0.9, 1900, 110),
    "hepatic_vein": (0.9, 1900, 110),
    "bone": (0.08, 900, 5),
    "marrow": (0.8, 586, 49),
    "disc": (0.7, 1100, 70),
}

# Deviation of the parenchyma's own texture, HU.
CT_TEXTURE_HU: dict[str, float] = {
    "liver": 4,
    "fat": 9,
    "muscle": 9,
    "stool": 60,
    "marrow": 40,
    "lung": 28,
    "tumour": 6,
    "spleen": 3,
    "bone": 60,
    "ablation": 6,
    "bowel_wall": 6,
    "pancreas": 12,
}

Sequence = Literal["t1_spgr", "t1_fat_saturated", "t2", "t2_fat_saturated"]
SEQUENCES: tuple[Sequence, ...] = ("t1_spgr", "t1_fat_saturated", "t2", "t2_fat_saturated")


@dataclass(frozen=True)
class Look:
    """A value and a texture deviation per tissue."""

    values: dict[str, float]
    textures: dict[str, float]


def ct_look(rng: np.random.Generator, phase: Phase, steatosis_hu: float) -> Look:
    """HU per tissue in one contrast phase; a bolus is never quite the same twice.

    Args:
        rng: draws the bolus's strength and this scan's small offsets.
        phase: contrast phase.
        steatosis_hu: by how much fat darkens this person's liver.
    """
    strength = rng.uniform(0.8, 1.15)
    column = PHASES.index(phase)
    values: dict[str, float] = {}
    for tissue, by_phase in CT_HU.items():
        values[tissue] = by_phase[0] + strength * (by_phase[column] - by_phase[0])
    values["liver"] -= steatosis_hu
    return Look(values, dict(CT_TEXTURE_HU))


def mr_look(rng: np.random.Generator, sequence: Sequence, steatosis_hu: float) -> Look:
    """MR signal per tissue: the SPGR equation (T1) or spin echo's exp(-TE/T2) (T2), fat saturated or not."""
    values: dict[str, float] = {}
    flip, tr_ms = np.deg2rad(rng.uniform(10, 15)), rng.uniform(3.8, 6.0)
    te_ms = rng.uniform(60, 100)
    for tissue, (density, t1_ms, t2_ms) in MR_RELAXATION.items():
        if sequence.startswith("t1"):
            e1 = np.exp(-tr_ms / t1_ms)
            signal = density * np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1) * np.exp(-2.0 / t2_ms) * 12
        else:
            signal = density * np.exp(-te_ms / t2_ms) * (1 - np.exp(-3500 / t1_ms)) * 2
            if tissue in ("artery", "vein", "portal_vein", "hepatic_vein", "heart"):
                signal *= 0.35  # flow void
        if sequence.endswith("fat_saturated") and tissue in ("fat", "marrow"):
            signal *= 0.18 if tissue == "fat" else 0.5
        values[tissue] = float(signal)
    values["liver"] *= 1 + 0.004 * steatosis_hu
    return Look(values, {tissue: 0.03 * values[tissue] + 0.004 for tissue in values if values[tissue] > 0})
