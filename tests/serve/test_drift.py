"""Drift: what is watched of an image, and when a series has moved."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign_serve import drift
from hepalign_serve.records import CaseRow, Image, Records, Site


def test_statistics_of_a_known_ct() -> None:
    data = np.full((40, 40, 20), -1000, np.int16)
    data[10:30, 10:30] = 40
    data[10:30, 10:20] = 60
    found = drift.statistics_of(Volume(data, Geometry.from_spacing(data.shape, 2.5)), ct=True)
    assert found == {"spacing_mm": 2.5, "extent_mm": 100.0, "level": pytest.approx(50, abs=11), "spread": 20.0}


def test_an_mrs_unit_does_not_matter() -> None:
    data = np.random.default_rng(0).gamma(2.0, 100.0, (24, 24, 24))
    geometry = Geometry.from_spacing(data.shape, 3.0)
    one, ten = (drift.statistics_of(Volume(data * scale, geometry), ct=False) for scale in (1.0, 10.0))
    assert one == ten


def test_shift_is_in_standard_deviations_of_what_came_before() -> None:
    before = [10.0, 12.0] * 20
    deviation = np.std(before, ddof=1)
    assert drift.shift([11.0] * drift.RECENT + before) == pytest.approx(0.0)
    assert drift.shift([11.0 + 3 * deviation] * drift.RECENT + before) == pytest.approx(3.0)
    assert drift.shift([11.0] * drift.RECENT + before[: drift.LEAST_BEFORE - 1]) is None
    assert drift.shift([6.0] * drift.RECENT + [5.0] * 40) == np.inf


def test_images_of_another_scanner_show(records: Records) -> None:
    now = time.time()
    with records.write() as session:
        session.add(Site(id="a", created=0.0, revoked=None))
        session.flush()
        for number in range(80):
            spacing = 2.5 + 0.01 * (number % 3) if number < 60 else 5.0
            facts = {"statistics": {"spacing_mm": spacing, "level": 50.0 + number % 5}}
            session.add(CaseRow(id=f"c{number}", site_id="a", created=0.0, touched=0.0))
            session.flush()
            session.add(
                Image(case_id=f"c{number}", role="ict", path="p", sha256="0", bytes_stored=1, facts=facts,
                      created=now + number)
            )  # fmt: skip
    found = drift.drifts(records)
    assert found["ict", "spacing_mm"] > 10
    assert abs(found["ict", "level"]) < 0.5
