"""Cohorts made by us: the same bits in any process, spacing by the field of view, two CTs that never meet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hepalign.cases.cohort import open_cohort
from hepalign.cases.phantom import PhantomCase, make_case
from hepalign.cases.sources.generate import phantom_cohort, simulated_cohort
from hepalign.errors import UsageError

SHAPE = (32, 32, 24)
DIGEST = """
import hashlib
from hepalign.cases.phantom import make_case
case = make_case(21, (32, 32, 24))
digest = hashlib.sha256()
for name in sorted(case.volumes):
    digest.update(case.volumes[name].data.tobytes())
for name in sorted(case.fields):
    digest.update(case.fields[name].vectors.tobytes())
"""


@pytest.fixture(scope="module")
def source() -> PhantomCase:
    return make_case(13, (48, 48, 36))


def test_another_process_and_other_threads_give_the_same_bits() -> None:
    here: dict[str, Any] = {}
    exec(DIGEST, here)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST + "print(digest.hexdigest())"], env=environment, capture_output=True, text=True,
        check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == here["digest"].hexdigest()


def test_without_a_spacing_the_field_of_view_is_spanned(tmp_path: Path) -> None:
    phantom_cohort(tmp_path / "made", cases=1, seed=3, shape=SHAPE, spacing_mm=None)
    cohort = open_cohort(str(tmp_path / "made"))
    pct = cohort.volume(cohort.cases()[0], "pct")
    assert pct.geometry.spacing_mm[0] * SHAPE[0] == pytest.approx(358.4)


def test_two_kinds_of_pairs_of_one_ct_share_a_cohort(tmp_path: Path, source: PhantomCase) -> None:
    out = tmp_path / "pairs"
    for phase in (False, True, False):
        simulated_cohort(
            out, ct=source.volumes["pct"], liver=None, name="a", cases=1, seed=0, shape=SHAPE, spacing_mm=None,
            phase=phase, split="train",
        )  # fmt: skip
    cases = open_cohort(str(out)).cases()
    assert {case.id for case in cases} == {"a-00000", "a-phase-00000"}
    assert {case.patient for case in cases} == {"a"}


def test_randomised_phantoms_are_cases_of_their_own_and_the_same_patients(tmp_path: Path) -> None:
    for randomised in (False, True, True):
        phantom_cohort(tmp_path, cases=1, seed=3, shape=SHAPE, spacing_mm=None, randomised=randomised)
    cases = open_cohort(tmp_path).cases()
    assert {case.id: case.attributes["randomised"] for case in cases} == {
        "phantom-00003": False,
        "phantom-randomised-00003": True,
    }
    assert {case.patient for case in cases} == {"phantom-00003"}


def test_a_case_that_is_there_on_another_grid_is_refused(tmp_path: Path, source: PhantomCase) -> None:
    phantom_cohort(tmp_path / "a", cases=1, seed=3, shape=SHAPE, spacing_mm=11.0)
    phantom_cohort(tmp_path / "a", cases=1, seed=3, shape=SHAPE, spacing_mm=11.0)
    pairs: dict[str, Any] = {"ct": source.volumes["pct"], "liver": None, "name": "p"}
    simulated_cohort(tmp_path / "b", cases=1, seed=0, shape=SHAPE, spacing_mm=11.0, **pairs)
    for shape, spacing_mm in ((SHAPE, None), (SHAPE, 10.0), ((32, 32, 20), 11.0)):
        with pytest.raises(UsageError, match="32,32,24 voxels of 11 mm") as refused:
            phantom_cohort(tmp_path / "a", cases=2, seed=2, shape=shape, spacing_mm=spacing_mm)
        assert refused.value.code == "case_differs"
        if spacing_mm is not None:
            with pytest.raises(UsageError, match="32,32,24 voxels of 11 mm"):
                simulated_cohort(tmp_path / "b", cases=2, seed=0, shape=shape, spacing_mm=spacing_mm, **pairs)
    assert [case.id for case in open_cohort(tmp_path / "a").cases()] == ["phantom-00003"]


@pytest.mark.slow
def test_workers_make_the_same_cohort(tmp_path: Path, source: PhantomCase) -> None:
    arrays = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        simulated_cohort(
            out, ct=source.volumes["pct"], liver=None, name="a", cases=2, seed=0, shape=SHAPE, spacing_mm=11.0,
            workers=workers, split="train",
        )  # fmt: skip
        cohort = open_cohort(str(out))
        arrays.append([np.asarray(cohort.volume(case, "ict").data) for case in cohort.cases()])
    np.testing.assert_array_equal(arrays[0], arrays[1])
