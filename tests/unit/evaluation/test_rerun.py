"""The comparison of two runs: what it counts, what it leaves out."""

from __future__ import annotations

import copy
from typing import Any

from hepalign.evaluation.rerun import TOLERANCES, compare_runs

RECORD: dict[str, Any] = {
    "case": "a",
    "method": "ants-syn",
    "rows": [{"pair": "pCT-iCT", "liver_tre_mm": 2.0, "liver_dice": 0.9, "seconds": 3.0, "peak_memory_mb": 500.0}],
    "images": {"inpainting": {"hole_l1_hu": 20.0}},
}


def changed(**values: float) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    record["rows"][0] |= values
    return record


def test_seconds_and_memory_are_no_results() -> None:
    found = compare_runs([RECORD], [changed(seconds=30.0, peak_memory_mb=1.0)])
    assert found["within"]
    assert found["units"] == 1
    assert {(row["unit"], row["largest"]) for row in found["differences"]} == {("mm", 0), ("share", 0), ("HU", 0)}


def test_largest_difference_is_told_by_unit_and_judged() -> None:
    near = compare_runs([RECORD], [changed(liver_tre_mm=2.0 + TOLERANCES["mm"] / 2)])
    assert near["within"]
    far = compare_runs([RECORD], [changed(liver_tre_mm=2.0 + TOLERANCES["mm"] * 2)])
    assert not far["within"]
    assert next(row["largest"] for row in far["differences"] if row["unit"] == "mm") > TOLERANCES["mm"]


def test_a_value_that_only_one_run_has_is_no_equality() -> None:
    record = copy.deepcopy(RECORD)
    del record["rows"][0]["liver_tre_mm"]
    found = compare_runs([RECORD], [record])
    assert found["one_sided"] == 1
    assert not found["within"]


def test_only_what_both_runs_have_is_compared() -> None:
    assert compare_runs([RECORD], [{**RECORD, "case": "b"}])["units"] == 0
