"""A phantom cohort of the smallest useful size: two patients to train on, one to validate, one to test."""

from __future__ import annotations

from pathlib import Path

from hepalign.cases.sources.generate import phantom_cohort


def small_cohort(folder: Path) -> Path:
    """48 × 48 × 40 voxels of 7 mm."""
    phantom_cohort(folder, cases=4, seed=1, shape=(48, 48, 40), spacing_mm=7.0, randomised=False, workers=1)
    return folder
