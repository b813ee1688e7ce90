from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_cases import toy_case, toy_cohort

from hepalign.cases.check import check_cohort
from hepalign.cases.landmarks import Landmarks
from hepalign.cases.writer import CohortWriter
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume


def codes(path: Path) -> set[tuple[str, str, str]]:
    return {(finding.case, finding.file, finding.code) for finding in check_cohort(path)}


def test_a_sound_cohort_has_no_finding(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=2)
    assert check_cohort(tmp_path) == []


def test_no_cohort_is_one_finding(tmp_path: Path) -> None:
    assert codes(tmp_path / "nowhere") == {("", "manifest.json", "missing_cohort")}
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert codes(tmp_path) == {("", "manifest.json", "bad_manifest")}


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=3)
    cases = tmp_path / "cases"
    (cases / "case-0" / "pct.nii.gz").unlink()
    (cases / "case-1" / "ict_landmarks.csv").write_text("name,x,y,z\na,1,2,3\n", encoding="utf-8")
    (cases / "case-2" / "notes.txt").write_text("hello", encoding="utf-8")
    CohortWriter(tmp_path).add("case-3", "patient-3", volumes={"pct": toy_case(3)["volumes"]["pct"]})
    assert codes(tmp_path) == {
        ("case-0", "pct", "missing_file"),
        ("case-1", "ict_landmarks", "changed_file"),
        ("case-2", "notes.txt", "unlisted_file"),
        ("case-3", "", "unfinished_case"),
    }


def test_images_and_masks_that_cannot_be(tmp_path: Path) -> None:
    made = toy_case(0)
    volumes = made["volumes"]
    geometry = volumes["pct"].geometry
    volumes["pct"] = volumes["pmr"].with_data(volumes["pmr"].as_float() + 1000)
    volumes["pct_liver"] = Volume(volumes["pct_liver"].data[:-2], geometry.crop((0, 0, 0), (38, 36, 32)))
    volumes["ict_probe_mask"] = Volume(np.ones(geometry.shape, bool), geometry)
    volumes["ict_liver"] = Volume(np.zeros(geometry.shape, bool), geometry)
    made["landmarks"]["ict"] = Landmarks(("a", "b"), made["landmarks"]["ict"].points_mm + 30)
    CohortWriter(tmp_path).add("bad", "p", **made)
    CohortWriter(tmp_path).finish()
    assert codes(tmp_path) == {
        ("bad", "pct", "modality_mismatch"),
        ("bad", "pct_liver", "other_grid"),
        ("bad", "ict_probe_mask", "probe_mask_too_large"),
        ("bad", "ict_liver", "empty_label"),
        ("bad", "truth_field_ict_from_pct", "truth_mismatch"),
    }


def test_images_that_do_not_overlap(tmp_path: Path) -> None:
    volumes = toy_case(0)["volumes"]
    away = Geometry.from_spacing(volumes["pct"].geometry.shape, 4.0, origin_mm=(500, 0, 0))
    pair = {"pct": volumes["pct"], "ict": Volume(volumes["ict_clean"].data, away)}
    CohortWriter(tmp_path).add("bad", "p", volumes=pair)
    CohortWriter(tmp_path).finish()
    assert codes(tmp_path) == {("bad", "ict", "no_overlap")}


def test_one_image_under_two_patients(tmp_path: Path) -> None:
    ct = {"pct": toy_case(0)["volumes"]["pct"]}
    writer = CohortWriter(tmp_path)
    writer.add("a", "p1", volumes=ct)
    writer.add("b", "p2", volumes=ct)
    writer.finish()
    assert codes(tmp_path) == {("b", "pct", "shared_image")}


def test_a_leak_by_hand_is_found(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=3)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    for case in manifest["cases"]:
        case["patient"] = "same"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert codes(tmp_path) == {("", "manifest.json", "bad_manifest")}


def test_a_half_copied_cohort(tmp_path: Path) -> None:
    toy_cohort(tmp_path / "a", cases=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("case-1"))
    assert {case for case, _, code in codes(tmp_path / "b") if code == "missing_file"} == {"case-1"}


@pytest.mark.parametrize("cut", [0, 100])
def test_a_truncated_file_does_not_end_the_check(tmp_path: Path, cut: int) -> None:
    toy_cohort(tmp_path, cases=2)
    path = tmp_path / "cases" / "case-0" / "pmr.nii.gz"
    path.write_bytes(path.read_bytes()[:cut])
    assert codes(tmp_path) == {("case-0", "pmr", "changed_file")}
