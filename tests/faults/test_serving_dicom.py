"""DICOM over HTTP: in as a zip, out under the right patient; other patients and lost contexts are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx2
import pydicom
import pytest
import toy_dicom
from served import Served, problem

from hepalign.image.read import read_volume


def send(served: Served, case: str, role: str, folder: Path, patient: str = toy_dicom.PATIENT_ID) -> httpx2.Response:
    volume = read_volume(served.images[role])
    modality = "MR" if role == "pmr" else "CT"
    made = toy_dicom.write_dicom(volume, folder / f"{role}-{patient}", modality=modality, patient_id=patient)
    packed = toy_dicom.zipped(made, folder / "upload.zip").read_bytes()
    return served.put(case, role, packed, **{"Content-Type": "application/zip"})


def guided(served: Served, case: str) -> dict[str, object]:
    headers = {"Idempotency-Key": f"dicom-{case}", "Prefer": "wait=60"}
    answer = served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers)
    assert answer.status_code == 200, answer.text
    done: dict[str, object] = answer.json()
    return done


@pytest.fixture(scope="module")
def case(served: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A case whose CTs came as DICOM, guided."""
    folder = tmp_path_factory.mktemp("dicom")
    with served.client() as client:
        case = client.open_case()
        client.upload(case, "pmr", served.images["pmr"])
        for role in ("pct", "ict"):
            assert send(served, case, role, folder).status_code == 201
        client.upload(case, "ict-probe-mask", served.images["ict-probe-mask"])
        client.plan(case, engine="learned", wait_s=60)
    guided(served, case)
    return case


def test_fault_48_another_patient(served: Served, case: str, tmp_path: Path) -> None:
    images = served.data_folder / "cases" / case / "images"
    before = sorted(images.iterdir())
    problem(send(served, case, "ict", tmp_path, patient="somebody else"), 422, "patient_mismatch")
    assert sorted(images.iterdir()) == before


def test_fault_51_no_dicom_context(served: Served) -> None:
    nifti_case = served.planned_case()
    job = guided(served, nifti_case)
    path = f"/v1/cases/{nifti_case}/artifacts/pct_on_ict.nii.gz?format=dicom&job={job['id']}"
    problem(served.call("GET", path), 422, "no_dicom_context")


def test_results_go_back_to_the_patient(served: Served, case: str) -> None:
    answer = served.call("GET", f"/v1/cases/{case}/artifacts/inpct.nii.gz?format=dicom")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        first = pydicom.dcmread(io.BytesIO(archive.read(sorted(archive.namelist())[0])))
    assert (first.PatientID, str(first.PatientName)) == (toy_dicom.PATIENT_ID, toy_dicom.PATIENT_NAME)
    assert "SYNTHETIC" in first.DerivationDescription
    problem(served.call("GET", f"/v1/cases/{case}/artifacts/result.json?format=dicom"), 422, "no_dicom_form")


def test_fault_33_no_patient_on_disk_in_the_clear(served: Served, case: str) -> None:
    for path in served.data_folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert toy_dicom.PATIENT_ID.encode() not in content, path.name
            assert b"Mustermann" not in content, path.name


def test_sealed_identity_goes_with_the_case(served: Served, tmp_path: Path) -> None:
    with served.client() as client:
        doomed = client.open_case()
        assert send(served, doomed, "ict", tmp_path).status_code == 201
        folder = served.data_folder / "cases" / doomed
        assert len(list(folder.rglob("*.dicom"))) == 1
        client.erase(doomed)
    assert not list(served.data_folder.rglob(f"*{doomed}*"))
