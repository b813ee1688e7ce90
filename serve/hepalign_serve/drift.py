"""Do the images that come in, and the results that go out, still look as they did?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from sqlalchemy import select

from hepalign.image.volume import Volume
from hepalign_serve.records import Image, Job, Records
from hepalign_serve.work import SUCCEEDED

RECENT, LEAST_BEFORE, MOST = 20, 30, 400
AIR_HU = -500.0
_QUALITY = ("expected_error_mm", "similarity_before", "similarity_after", "inverse_consistency_mm", "liver_dice")
_SAMPLES = 1 << 17


def statistics_of(volume: Volume, *, ct: bool) -> dict[str, float]:
    """What is watched of an image: its grid, and level and spread of what is not air.

    Level and spread are HU for a CT; for an MR, whose unit is arbitrary, shares of its 99th percentile.
    """
    geometry = volume.geometry
    extent_mm = max(n * s for n, s in zip(geometry.shape, geometry.spacing_mm, strict=True))
    sampled = np.asarray(volume.data).reshape(-1)[:: max(1, volume.data.size // _SAMPLES)].astype(np.float64)
    top = 1.0 if ct else max(float(np.percentile(sampled, 99)), 1e-6)
    inside = sampled[sampled > (AIR_HU if ct else sampled.mean())] / top
    low, level, high = np.percentile(inside, (25, 50, 75)) if inside.size else (0.0, 0.0, 0.0)
    found = {
        "spacing_mm": max(geometry.spacing_mm),
        "extent_mm": extent_mm,
        "level": float(level),
        "spread": float(high - low),
    }
    return {name: round(value, 3) for name, value in found.items()}


def drifts(records: Records) -> dict[tuple[str, str], float]:
    """By (source, statistic): how far the last twenty lie from those before, in standard deviations of those before.

    The source is an image's role, or `guide` for the quality of results. Where too few came before, it is left out.
    """
    newest = list(_series(records))
    names = sorted({name for name, _ in newest})
    found = {name: shift([value for other, value in newest if other == name]) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def shift(newest_first: Sequence[float]) -> float | None:
    """The standardised shift of the recent values; None without enough earlier ones."""
    recent, before = newest_first[:RECENT], newest_first[RECENT:]
    if len(before) < LEAST_BEFORE:
        return None
    deviation = stdev(before)
    difference = fmean(recent) - fmean(before)
    if deviation == 0.0:
        return 0.0 if difference == 0.0 else float(np.copysign(np.inf, difference))
    return difference / deviation


def _series(records: Records) -> Iterator[tuple[tuple[str, str], float]]:
    images = select(Image.role, Image.facts).order_by(Image.created.desc()).limit(MOST * 3)
    guides = select(Job.result).where(Job.kind == "guide", Job.state == SUCCEEDED)
    with records.read() as session:
        for role, facts in session.execute(images):
            yield from _numbers(role, facts.get("statistics", {}))
        for result in session.scalars(guides.order_by(Job.finished.desc()).limit(MOST)):
            quality = (result or {}).get("quality", {})
            yield from _numbers("guide", {name: quality.get(name) for name in _QUALITY})


def _numbers(source: str, values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    for name, value in values.items():
        if isinstance(value, int | float):
            yield (source, name), float(value)
