from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from toy_cases import toy_cohort

from hepalign.cases.cohort import open_cohort
from hepalign.errors import BadInputError


def test_cases_by_split(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=4)
    cohort = open_cohort(tmp_path)
    assert len(cohort.cases()) == 4
    assert sum(len(cohort.cases(split)) for split in ("train", "val", "test")) == 4
    assert {case.split for case in cohort.cases("train")} == {"train"}


def test_a_cohort_travels_to_other_processes(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=1)
    cohort = pickle.loads(pickle.dumps(open_cohort(tmp_path)))
    assert cohort.volume(cohort.cases()[0], "pct").data.any()


def test_no_cohort_here(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as error:
        open_cohort(tmp_path / "nowhere")
    assert error.value.code == "missing_cohort"
    assert str(tmp_path) not in error.value.message


def test_a_missing_role_is_named(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=1)
    cohort = open_cohort(tmp_path)
    with pytest.raises(BadInputError, match="case-0") as error:
        cohort.volume(cohort.cases()[0], "ict_ablation")
    assert error.value.code == "missing_role"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=1)
    cohort = open_cohort(tmp_path)
    (tmp_path / "cases" / "case-0" / "pct.nii.gz").unlink()
    with pytest.raises(BadInputError, match=r"case-0.*pct\.nii\.gz") as error:
        cohort.volume(cohort.cases()[0], "pct")
    assert error.value.code == "missing_file"
