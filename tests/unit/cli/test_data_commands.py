"""Options of `hepalign data …` that only the command line joins together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_cases import toy_case
from toy_dicom import PATIENT_NAME, write_dicom, write_segmentation
from typer.main import get_command

from hepalign.cases.cohort import open_cohort
from hepalign.cli.app import app
from hepalign.image.nifti import write_nifti
from hepalign.image.resample import resample

TOY = toy_case(0)["volumes"]
GRID = ["--shape", "40,32,32", "--spacing", "4"]


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        get_command(app)(args=["data", *words, "--json"], prog_name="hepalign")
    return int(str(ended.value.code or 0)), json.loads(capfd.readouterr().out)


def test_n4_keeps_what_it_took_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = TOY["pmr"].geometry.grid_mm()[..., 0]
    shaded = TOY["pmr"].with_data((TOY["pmr"].as_float() * np.exp(x / 150)).astype(np.float32))
    write_nifti(shaded, tmp_path / "mr.nii.gz")
    words = [
        "import",
        "--out",
        str(tmp_path / "c"),
        "--case",
        "one",
        "--pmr",
        str(tmp_path / "mr.nii.gz"),
        *GRID,
        "--n4",
    ]
    assert run(words, capfd)[0] == 0
    cohort = open_cohort(tmp_path / "c")
    corrected, bias = (cohort.volume(cohort.cases()[0], name) for name in ("pmr", "pmr_bias"))
    assert np.ptp(bias.as_float()) > 0.05
    inside = corrected.geometry.contains(shaded.geometry.grid_mm())
    back = resample(corrected.with_data(corrected.as_float() * bias.as_float()), shaded.geometry).as_float()
    error = np.abs(back - shaded.as_float())[inside]
    assert np.median(error) < 0.02 * np.ptp(shaded.as_float())


def test_a_table_chooses_series_and_takes_segmentations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_dicom(TOY["pct"], tmp_path / "export" / "a")
    write_dicom(TOY["ict_clean"], tmp_path / "export" / "b")
    write_segmentation(write_dicom(TOY["pct"], tmp_path / "alone"), TOY["pct_liver"], tmp_path / "seg.dcm", "Liver")
    table = tmp_path / "t.csv"
    table.write_text(
        "case,pct,pct_series,pct_liver\none,export,2,\ntwo,alone,,seg.dcm\nthree,export,9,\nfour,export,x,\n",
        encoding="utf-8",
    )
    status, answer = run(["import-table", str(table), "--out", str(tmp_path / "c"), *GRID], capfd)
    assert status == 3
    assert [(found["case"], found["code"]) for found in answer["findings"]] == [  # type: ignore[attr-defined]
        ("three", "no_such_series"),
        ("four", "no_such_series"),
    ]
    assert PATIENT_NAME not in json.dumps(answer)
    cases = {case.id: case for case in open_cohort(tmp_path / "c").cases()}
    assert set(cases) == {"one", "two"}
    assert cases["two"].has("pct", "pct_liver")


def test_a_table_tells_the_warnings_of_every_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_nifti(TOY["pct"], tmp_path / "pct.nii.gz")
    (tmp_path / "t.csv").write_text("case,pct\none,pct.nii.gz\ntwo,missing\n", encoding="utf-8")
    words = ["import-table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "c"), *GRID]
    status, answer = run(words, capfd)
    assert status == 3
    assert answer["warnings"] == ["one: pct: no liver mask"]
    words[3] = str(tmp_path / "again")
    with pytest.raises(SystemExit):
        get_command(app)(args=["data", *words], prog_name="hepalign")
    assert "warning: one: pct: no liver mask\n" in capfd.readouterr().err


def test_pairs_of_two_cts_stand_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--out", str(tmp_path / "c"), "--cases", "1", "--shape", "32,32,32", "--spacing", "5", "--ct"]
    first, second = (write_dicom(TOY[name], tmp_path / name) for name in ("pct", "ict_clean"))
    for folder in (first, second, first):
        assert run([*words, str(folder)], capfd)[0] == 0
    patients = {case.patient for case in open_cohort(tmp_path / "c").cases()}
    assert len(patients) == len(open_cohort(tmp_path / "c").cases()) == 2
    status, answer = run([*words, str(first), "--patient", "mustermann-1"], capfd)
    assert status == 3
    assert answer["error"]["code"] == "identifying_id"  # type: ignore[index]
