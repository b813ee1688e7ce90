from __future__ import annotations

from pathlib import Path

import pytest
from toy_cases import toy_case
from toy_dicom import write_dicom

from hepalign.cases.cohort import open_cohort
from hepalign.cases.sources.scans import ImportSettings
from hepalign.cases.sources.table import import_table
from hepalign.errors import BadInputError
from hepalign.image.nifti import write_nifti

SETTINGS = ImportSettings(shape=(40, 32, 32), spacing_mm=4)


def test_a_table_of_patients_becomes_a_cohort_and_bad_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(2):
        write_nifti(toy_case(n)["volumes"]["pct"], tmp_path / "in" / f"ct{n}.nii.gz")
        write_dicom(toy_case(n)["volumes"]["ict_clean"], tmp_path / "in" / f"ict{n}")
    (tmp_path / "in" / "l.csv").write_text("name,x,y,z\na,1,2,3\n", encoding="utf-8")
    table = tmp_path / "in" / "patients.csv"
    table.write_text(
        "case, patient, stratum, pct, ict, pct_landmarks\n"
        "a, p1, cirrhosis, ct0.nii.gz, ict0, l.csv\n"
        "b, p2, , ct1.nii.gz, ict1,\n"
        "c, p3, , missing.nii.gz, ,\n"
        "../d, p4, , ct1.nii.gz, ,\n",
        encoding="utf-8",
    )
    seen: list[tuple[int, int]] = []
    result = import_table(tmp_path / "c", table, settings=SETTINGS, progress=lambda n, of: seen.append((n, of)))
    assert [one.case_id for one in result.imported] == ["a", "b"]
    assert [(f.case, f.code) for f in result.findings] == [("c", "no_such_file"), ("../d", "bad_case_id")]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    cohort = open_cohort(tmp_path / "c")
    a, b = cohort.cases()
    assert a.attributes["stratum"] == "cirrhosis"
    assert a.has("pct", "ict", "pct_landmarks")
    assert not b.has("pct_landmarks")
    write_nifti(toy_case(3)["volumes"]["pct"], tmp_path / "in" / "missing.nii.gz")
    again = import_table(tmp_path / "c", table, settings=SETTINGS)
    assert [one.case_id for one in again.imported] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "name\na\n", "case,pct\n", "case,pct,colour\na,b,c\n", "case\na\na\n"])
def test_what_is_no_table(tmp_path: Path, text: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"^t\.csv: ") as error:
        import_table(tmp_path / "c", table, settings=SETTINGS)
    assert error.value.code == "bad_table"
