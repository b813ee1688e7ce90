"""A cohort file that changed since the manifest is refused, and the refusal names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_cases import toy_cohort

from hepalign.cases.cohort import open_cohort
from hepalign.errors import EXIT_BAD_DATA, BadInputError


@pytest.mark.parametrize(
    "name", ["pct.nii.gz", "truth_field_ict_from_pct.nii.gz", "pct_landmarks.csv"], ids=["image", "field", "landmarks"]
)
@pytest.mark.parametrize("same_size", [True, False])
def test_fault_81_changed_file(tmp_path: Path, name: str, same_size: bool) -> None:
    toy_cohort(tmp_path, cases=1)
    cohort = open_cohort(tmp_path)
    case = cohort.cases()[0]
    path = tmp_path / "cases" / "case-0" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if same_size else data[:-1])
    read = {
        "pct.nii.gz": lambda: cohort.volume(case, "pct"),
        "truth_field_ict_from_pct.nii.gz": lambda: cohort.field(case, "truth_field_ict_from_pct"),
        "pct_landmarks.csv": lambda: cohort.landmarks(case, "pct"),
    }
    with pytest.raises(BadInputError, match=name.replace(".", r"\.")) as error:
        read[name]()
    assert error.value.code == "changed_file"
    assert error.value.exit_code == EXIT_BAD_DATA
    assert str(tmp_path) not in error.value.message
