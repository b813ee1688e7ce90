"""Masks, labels and pairs that do not belong together, at the door of the cohort."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_cases import toy_case
from toy_dicom import PATIENT_ID, PATIENT_NAME, write_dicom

from hepalign.cases.cohort import open_cohort
from hepalign.cases.sources.importing import Imported, import_case
from hepalign.errors import EXIT_BAD_DATA, BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

TOY = toy_case(0)["volumes"]
SHAPE = (40, 32, 32)


def save(path: Path, volume: Volume) -> Path:
    write_nifti(volume.with_data(volume.data.astype(np.uint8)) if volume.data.dtype == bool else volume, path)
    return path


def bring(folder: Path, name: str, label: Volume) -> Imported:
    """Import the toy pCT with one label."""
    image = save(folder / "pct.nii.gz", TOY["pct"])
    label_path = save(folder / f"{name}.nii.gz", label)
    return import_case(folder / "c", "one", images={"pct": image}, labels={name: label_path}, shape=SHAPE, spacing_mm=4)


def bring_probe(folder: Path, mask: Volume | dict[str, object]) -> Imported:
    """Import the toy iCT with a probe mask."""
    image = save(folder / "ict.nii.gz", TOY["ict_clean"])
    if isinstance(mask, Volume):
        path = save(folder / "probe.nii.gz", mask)
    else:
        path = folder / "probe.json"
        path.write_text(json.dumps(mask), encoding="utf-8")
    return import_case(folder / "c", "one", images={"ict": image}, probe_mask=path, shape=SHAPE, spacing_mm=4)


def refused(folder: Path, code: str, error: pytest.ExceptionInfo[BadInputError]) -> None:
    assert error.value.code == code
    assert error.value.status == 422
    assert error.value.exit_code == EXIT_BAD_DATA
    assert str(folder) not in error.value.message
    assert not (folder / "c" / "manifest.json").exists()
    assert not list((folder / "c" / "cases").iterdir())


def test_fault_35_mask_on_another_grid(tmp_path: Path) -> None:
    finer = TOY["pct"].geometry.with_shape((60, 54, 64))
    imported = bring(
        tmp_path,
        "pct_liver",
        resample(TOY["pct_liver"].with_data(TOY["pct_liver"].data.astype(np.uint8)), finer, mode="nearest"),
    )
    assert any("pct_liver" in line and "resampled" in line for line in imported.warnings)
    cohort = open_cohort(tmp_path / "c")
    liver = cohort.volume(cohort.cases()[0], "pct_liver")
    assert liver.as_mask().sum() == pytest.approx(TOY["pct_liver"].as_mask().sum(), rel=0.15)


def test_fault_35_probe_mask_on_another_grid(tmp_path: Path) -> None:
    mask = TOY["ict_probe_mask"]
    cropped = Volume(mask.data[10:, 10:, 10:], mask.geometry.crop((10, 10, 10), (30, 26, 22)))
    imported = bring_probe(tmp_path, cropped)
    assert any("resampled" in line for line in imported.warnings)
    cohort = open_cohort(tmp_path / "c")
    assert cohort.volume(cohort.cases()[0], "ict_probe_mask").as_mask().any()


@pytest.mark.parametrize("kind", ["label", "probe"])
def test_fault_36_mask_in_another_frame(tmp_path: Path, kind: str) -> None:
    elsewhere = Geometry.from_spacing(TOY["pct"].geometry.shape, 4.0, origin_mm=(900, 900, 900))
    bring_it = {
        "label": lambda: bring(tmp_path, "pct_liver", Volume(TOY["pct_liver"].data, elsewhere)),
        "probe": lambda: bring_probe(tmp_path, Volume(TOY["ict_probe_mask"].data, elsewhere)),
    }
    with pytest.raises(BadInputError) as error:
        bring_it[kind]()
    refused(tmp_path, "frame_mismatch", error)


@pytest.mark.parametrize("low", [[0, 0, 0], [700, 700, 700]], ids=["empty", "outside"])
def test_fault_37_probe_mask_empty_or_outside(tmp_path: Path, low: list[float]) -> None:
    mask = (
        Volume(np.zeros(TOY["ict"].data.shape, bool), TOY["ict"].geometry)
        if low == [0, 0, 0]
        else {"kind": "box", "low_mm": low, "high_mm": [720, 720, 720]}
    )
    with pytest.raises(BadInputError) as error:
        bring_probe(tmp_path, mask)
    refused(tmp_path, "empty_probe_mask", error)


def test_fault_38_probe_mask_over_a_fifth_of_the_body(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as error:
        bring_probe(tmp_path, {"kind": "box", "low_mm": [-70, -60, -50], "high_mm": [0, 80, 74]})
    refused(tmp_path, "probe_mask_too_large", error)


@pytest.mark.parametrize(
    "points",
    [[[0, 0], [20, 20], [20, 0], [0, 20]], [[0, 0], [20, float("nan")], [20, 0]], [[0, 0], [1, 1]], "points"],
    ids=["crossing", "nan", "two points", "no points"],
)
def test_fault_39_bad_polygon(tmp_path: Path, points: object) -> None:
    with pytest.raises(BadInputError) as error:
        bring_probe(tmp_path, {"kind": "polygon", "points_mm": points, "z_mm": [0, 10]})
    refused(tmp_path, "bad_probe_mask", error)


@pytest.mark.parametrize("numbered", [True, False])
def test_fault_40_several_tumours_are_kept_apart(tmp_path: Path, numbered: bool) -> None:
    data = np.zeros(TOY["pct"].data.shape, np.uint8)
    data[10:13, 16:20, 14:18], data[24:28, 16:20, 14:18] = (3, 7) if numbered else (1, 1)
    bring(tmp_path, "pct_tumour", Volume(data, TOY["pct"].geometry))
    cohort = open_cohort(tmp_path / "c")
    found = set(np.unique(cohort.volume(cohort.cases()[0], "pct_tumour").data).tolist())
    assert found == ({0, 3, 7} if numbered else {0, 1, 2})


def test_fault_41_no_liver_mask_is_a_warning(tmp_path: Path) -> None:
    image = save(tmp_path / "pct.nii.gz", TOY["pct"])
    imported = import_case(tmp_path / "c", "one", images={"pct": image}, shape=SHAPE)
    assert "pct: no liver mask" in imported.warnings


def test_fault_42_no_overlap(tmp_path: Path) -> None:
    away = Geometry.from_spacing(TOY["ict"].geometry.shape, 4.0, origin_mm=(-70, -60, 400))
    images = {
        "pct": save(tmp_path / "pct.nii.gz", TOY["pct"]),
        "ict": save(tmp_path / "ict.nii.gz", Volume(TOY["ict_clean"].data, away)),
    }
    with pytest.raises(BadInputError) as error:
        import_case(tmp_path / "c", "one", images=images, shape=SHAPE)
    refused(tmp_path, "no_overlap", error)


def test_fault_48_patient_mismatch(tmp_path: Path) -> None:
    images = {
        "pct": write_dicom(TOY["pct"], tmp_path / "pct"),
        "ict": write_dicom(TOY["ict_clean"], tmp_path / "ict", patient_id="0000-1111"),
    }
    with pytest.raises(BadInputError) as error:
        import_case(tmp_path / "c", "one", images=images, shape=SHAPE)
    refused(tmp_path, "patient_mismatch", error)
    for secret in (PATIENT_ID, "0000-1111", *PATIENT_NAME.split("^")):
        assert secret not in error.value.message


def test_fault_33_file_names_and_tags_stay_out_of_errors(tmp_path: Path) -> None:
    folder = write_dicom(TOY["pmr"], tmp_path / PATIENT_NAME)
    with pytest.raises(BadInputError) as error:
        import_case(tmp_path / "c", "one", images={"pct": folder}, shape=SHAPE)
    assert error.value.code == "modality_mismatch"
    assert not any(part in error.value.message for part in (*PATIENT_NAME.split("^"), PATIENT_ID))
