"""Results as DICOM: read back by the series reader and by highdicom, filed under the source's patient."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import toy_dicom

from hepalign.image.dicom import DicomSeries, load_series
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign_serve.dicom_out import NOTICE, export
from hepalign_serve.problems import RequestError
from hepalign_serve.vault import Vault, check_same_patient

SHAPE = (20, 16, 12)
OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
ANISOTROPIC = Geometry.from_spacing(SHAPE, (2.0, 3.0, 4.0), origin_mm=(-20.0, 30.0, -50.0), direction=OBLIQUE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DicomSeries:
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    ict = Volume(rng.integers(-900, 900, SHAPE).astype(np.int16), Geometry.from_spacing(SHAPE, (2.0, 3.0, 4.0)))
    packed = toy_dicom.zipped(toy_dicom.write_dicom(ict, folder / "ict"), folder / "ict.zip")
    return load_series(packed, name="ict")


def unpacked(content: bytes, folder: Path) -> list[pydicom.Dataset]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


@pytest.mark.parametrize(("name", "modality"), [("pct_on_ict", "CT"), ("pmr_on_ict", "MR")])
def test_series_round_trip(source: DicomSeries, tmp_path: Path, name: str, modality: str) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(-1000, 1500, SHAPE).astype(np.int16) if modality == "CT" else rng.random(SHAPE, np.float32)
    volume = Volume(data, ANISOTROPIC)
    content = export(name, volume, {}, source.headers[0], "hepalign 1")
    slices = unpacked(content, tmp_path / "out")
    back = load_series(tmp_path / "out" / name, name="back")
    assert back.volume.geometry.same_grid(volume.geometry)
    np.testing.assert_allclose(back.volume.as_float(), volume.as_float(), atol=1e-4)
    assert back.identity.modality == modality
    assert back.identity.patient == toy_dicom.PATIENT_ID
    assert (back.identity.study, back.identity.frame_of_reference) == (
        source.identity.study, source.identity.frame_of_reference,
    )  # fmt: skip
    assert back.identity.series != source.identity.series
    for one in slices:
        assert one.ImageType[0] == "DERIVED"
        assert NOTICE in one.SeriesDescription
        assert one.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
        assert "InstitutionName" not in one


def test_labels_become_segments(source: DicomSeries, tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:16, 3:12, 2:10] = 1
    labels[6:8, 5:7, 4:6], labels[10:12, 8:10, 6:8] = 2, 3
    names = {1: "liver", 2: "tumour 1", 3: "tumour 2"}
    content = export("labels_on_ict", Volume(labels, ANISOTROPIC), names, source.headers[0], "hepalign 1")
    (path,) = (tmp_path / "seg.dcm",)
    path.write_bytes(zipfile.ZipFile(io.BytesIO(content)).read("labels_on_ict/0000.dcm"))
    seg = hd.seg.segread(path)
    assert [seg.get_segment_description(n).segment_label for n in (1, 2, 3)] == ["liver", "tumour 1", "tumour 2"]
    assert seg.PatientID == toy_dicom.PATIENT_ID
    assert seg.FrameOfReferenceUID == source.identity.frame_of_reference
    read = seg.get_volume(combine_segments=True)
    lps_to_ras = np.diag([-1.0, -1, 1, 1])
    for value in names:
        mine = np.argwhere(labels == value)
        theirs = np.argwhere(read.array == value)
        world = (lps_to_ras @ read.affine @ np.c_[theirs, np.ones(len(theirs))].T)[:3].T
        expected = ANISOTROPIC.index_to_world(mine)
        np.testing.assert_allclose(np.sort(world, axis=0), np.sort(expected, axis=0), atol=1e-3)


def test_what_has_no_dicom_form_is_refused(source: DicomSeries) -> None:
    with pytest.raises(RequestError) as error:
        export("result", Volume(np.zeros(SHAPE, np.int16), ANISOTROPIC), {}, source.headers[0], "")
    assert (error.value.code, error.value.status) == ("no_dicom_form", 422)


def test_vault_hides_and_gives_back(source: DicomSeries, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    facts = vault.keep(tmp_path / "sealed", source)
    sealed = (tmp_path / "sealed").read_bytes()
    for secret in (toy_dicom.PATIENT_ID, "Mustermann"):
        assert secret.encode() not in sealed
        assert secret not in str(facts)
    assert Vault(tmp_path / "key").open(tmp_path / "sealed").PatientID == toy_dicom.PATIENT_ID
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    check_same_patient(facts, [facts, {}])
    with pytest.raises(RequestError, match="patient"):
        check_same_patient(facts, [facts | {"patient": "another"}])
