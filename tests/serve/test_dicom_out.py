"""Results as DICOM: read back by our reader, highdicom, dicom3tools and dcmtk; filed under the source's patient."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import toy_dicom
from PIL import Image

from hepalign.image.dicom import DicomSeries, load_series
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign_serve.dicom_out import FORMS, export
from hepalign_serve.dicom_source import NOTICE, kept
from hepalign_serve.problems import RequestError
from hepalign_serve.vault import Vault, check_same_patient

SHAPE = (20, 16, 12)
OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
ANISOTROPIC = Geometry.from_spacing(SHAPE, (2.0, 3.0, 4.0), origin_mm=(-20.0, 30.0, -50.0), direction=OBLIQUE)
PATIENT = "Müller^Jörg"
RESULT: dict[str, Any] = {
    "quality": {"status": "accept"},
    "release": {"name": "hepalign", "version": "7"},
    "labels": {"1": "liver", "2": "tumour 1", "3": "tumour 2"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DicomSeries:
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    ict = Volume(rng.integers(-900, 900, SHAPE).astype(np.int16), Geometry.from_spacing(SHAPE, (2.0, 3.0, 4.0)))
    written = toy_dicom.write_dicom(ict, folder / "ict")
    for path in written.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet, header.PatientName, header.StudyID = "ISO_IR 100", PATIENT, "17"
        header.save_as(path)
    return load_series(toy_dicom.zipped(written, folder / "ict.zip"), name="ict")


def artifact(name: str, folder: Path, geometry: Geometry = ANISOTROPIC) -> tuple[Path, Volume]:
    """A file of this name and what is in it."""
    rng = np.random.default_rng(1)
    data: np.ndarray[Any, Any] = rng.integers(-1000, 1500, SHAPE).astype(np.int16)
    if name.startswith("pmr"):
        data = rng.integers(0, 2000, SHAPE).astype(np.float32)
    if FORMS[name].kind == "SEG":
        data = np.zeros(SHAPE, np.uint8)
        data[4:16, 3:12, 2:10] = 1
        if name.startswith("labels"):
            data[6:8, 5:7, 4:6], data[10:12, 8:10, 6:8] = 2, 3
    volume = Volume(data, geometry)
    if FORMS[name].kind == "SC":
        Image.fromarray(rng.integers(0, 255, (61, 83, 3)).astype(np.uint8)).save(folder / name)
    else:
        write_nifti(volume, folder / name)
    return folder / name, volume


def exported(name: str, source: DicomSeries, folder: Path, result: dict[str, Any] = RESULT) -> list[Path]:
    """The DICOM files of an artifact."""
    path, _ = artifact(name, folder)
    with zipfile.ZipFile(io.BytesIO(export(name, path, result, kept(source)))) as archive:
        archive.extractall(folder / "out")
    return sorted((folder / "out").rglob("*.dcm"))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_valid_and_the_patients(source: DicomSeries, tmp_path: Path, name: str) -> None:
    files = exported(name, source, tmp_path)
    one = pydicom.dcmread(files[0])
    assert (one.PatientID, str(one.PatientName)) == (toy_dicom.PATIENT_ID, PATIENT)
    assert (one.StudyInstanceUID, one.StudyID) == (source.identity.study, "17")
    assert one.SeriesInstanceUID != source.identity.series
    assert one.SeriesDescription.endswith(NOTICE)
    assert len(one.SeriesDescription) <= 64
    assert "InstitutionName" not in one
    for checker, complaint in (("dciodvfy", "Error"), ("dcmdump", "E:")):
        if shutil.which(checker) is None:
            pytest.skip(f"no {checker} here: install Debian's dicom3tools and dcmtk")
        told = subprocess.run([checker, files[0]], capture_output=True, text=True, errors="replace")
        wrong = [line for line in told.stderr.splitlines() if line.startswith(complaint)]
        assert wrong == []


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.kind in ("CT", "MR")])
def test_series_round_trip(source: DicomSeries, tmp_path: Path, name: str) -> None:
    files = exported(name, source, tmp_path)
    back = load_series(files[0].parent, name="back")
    _, volume = artifact(name, tmp_path)
    assert back.volume.geometry.same_grid(volume.geometry)
    np.testing.assert_array_equal(back.volume.as_float(), volume.as_float())
    assert back.identity.modality == FORMS[name].kind
    assert back.identity.frame_of_reference == source.identity.frame_of_reference
    one = pydicom.dcmread(files[3])
    assert one.ImageType[:2] == ["DERIVED", "SECONDARY"]
    equipment = one.ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
    assert equipment.SoftwareVersions == "hepalign 7"
    if name == "inpct.nii.gz":
        reference = one.SourceImageSequence[0].ReferencedSOPInstanceUID
        assert reference == source.headers[3].SOPInstanceUID


def test_weak_mr_keeps_its_digits(source: DicomSeries, tmp_path: Path) -> None:
    data = np.random.default_rng(2).random(SHAPE, np.float32)
    write_nifti(Volume(data, ANISOTROPIC), tmp_path / "pmr_on_ict.nii.gz")
    packed = export("pmr_on_ict.nii.gz", tmp_path / "pmr_on_ict.nii.gz", RESULT, kept(source))
    (tmp_path / "out.zip").write_bytes(packed)
    np.testing.assert_allclose(load_series(tmp_path / "out.zip").volume.as_float(), data, atol=1 / 4095)


def test_labels_become_segments(source: DicomSeries, tmp_path: Path) -> None:
    (path,) = exported("labels_on_ict.nii.gz", source, tmp_path)
    labels = np.asarray(artifact("labels_on_ict.nii.gz", tmp_path)[1].data)
    seg = hd.seg.segread(path)
    assert [seg.get_segment_description(n).segment_label for n in (1, 2, 3)] == ["liver", "tumour 1", "tumour 2"]
    assert seg.FrameOfReferenceUID == source.identity.frame_of_reference
    referred = seg.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.identity.series
    instances = {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence}
    assert instances == {header.SOPInstanceUID for header in source.headers}
    read = seg.get_volume(combine_segments=True)
    lps_to_ras = np.diag([-1.0, -1, 1, 1])
    for value in (1, 2, 3):
        mine, theirs = np.argwhere(labels == value), np.argwhere(read.array == value)
        world = (lps_to_ras @ read.affine @ np.c_[theirs, np.ones(len(theirs))].T)[:3].T
        np.testing.assert_allclose(np.sort(world, axis=0), np.sort(ANISOTROPIC.index_to_world(mine), axis=0), atol=1e-3)


def test_dcmtk_sees_the_picture(source: DicomSeries, tmp_path: Path) -> None:
    (path,) = exported("overview.png", source, tmp_path)
    tool = shutil.which("dcm2img") or shutil.which("dcmj2pnm")
    if tool is None:
        pytest.skip("no dcmtk here: install Debian's dcmtk")
    subprocess.run([tool, "--write-png", path, tmp_path / "back.png"], check=True)
    back, sent = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("back.png", "overview.png"))
    np.testing.assert_array_equal(back, sent)


@pytest.mark.parametrize(
    ("status", "said"), [("reject", "REJECTED: DO NOT USE"), ("review", "REVIEW"), (None, "REJECTED")]
)
@pytest.mark.parametrize("name", FORMS)
def test_a_reject_never_looks_like_an_accept(
    source: DicomSeries, tmp_path: Path, name: str, status: str | None, said: str
) -> None:
    one = pydicom.dcmread(exported(name, source, tmp_path, RESULT | {"quality": {"status": status}})[0])
    assert one.SeriesDescription.startswith(said)
    assert len(one.SeriesDescription) <= 64


@pytest.mark.parametrize("name", ["pmr_on_ict.nii.gz", "labels_on_ict.nii.gz", "overview.png"])
def test_the_same_artifact_has_the_same_uids(source: DicomSeries, tmp_path: Path, name: str) -> None:
    path, _ = artifact(name, tmp_path)
    accepted, again = (export(name, path, RESULT, kept(source)) for _ in range(2))
    rejected = export(name, path, RESULT | {"quality": {"status": "reject"}}, kept(source))

    def uids(packed: bytes) -> set[str]:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            read = [pydicom.dcmread(io.BytesIO(archive.read(member))) for member in archive.namelist()]
        assert len({one.SOPInstanceUID for one in read}) == len(read)
        return {one.SOPInstanceUID for one in read} | {read[0].SeriesInstanceUID}

    assert uids(accepted) == uids(again)
    assert not uids(accepted) & uids(rejected)


def test_what_has_no_dicom_form_is_refused(source: DicomSeries, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        export("result.json", tmp_path / "result.json", RESULT, kept(source))
    assert (error.value.code, error.value.status) == ("no_dicom_form", 422)


def test_results_of_one_anonymous_series_go_into_one_study(source: DicomSeries) -> None:
    nameless = DicomSeries(source.volume, source.identity, tuple(pydicom.Dataset(header) for header in source.headers))
    nameless.headers[0].StudyInstanceUID = ""
    first, second = kept(nameless), kept(nameless)
    assert first.StudyInstanceUID == second.StudyInstanceUID != ""


def without(source: DicomSeries, *keywords: str, **words: str) -> DicomSeries:
    """The series with these attributes gone from its headers and identity, and others set."""
    headers = tuple(deepcopy(header) for header in source.headers)
    for header in headers:
        for keyword in keywords:
            delattr(header, keyword)
        for keyword, value in words.items():
            setattr(header, keyword, value)
    gone = {"SeriesInstanceUID": {"series": ""}, "FrameOfReferenceUID": {"frame_of_reference": ""}}
    identity = source.identity
    for keyword in keywords:
        identity = replace(identity, **gone[keyword])
    return DicomSeries(source.volume, identity, headers)


@pytest.mark.parametrize("name", ["pct_on_ict.nii.gz", "labels_on_ict.nii.gz", "overview.png"])
@pytest.mark.parametrize("gone", [("FrameOfReferenceUID",), ("SeriesInstanceUID",)])
def test_a_source_without_uids_gets_its_own_and_keeps_them(
    source: DicomSeries, tmp_path: Path, name: str, gone: tuple[str, ...]
) -> None:
    bare = without(source, *gone)
    (keyword,) = gone
    assert kept(bare)[keyword].value == kept(bare)[keyword].value != ""
    one = pydicom.dcmread(exported(name, bare, tmp_path)[0])
    if keyword == "FrameOfReferenceUID" and name != "overview.png":
        assert one.FrameOfReferenceUID == kept(bare).FrameOfReferenceUID
    other = Volume(source.volume.data + 1, source.volume.geometry)
    another = DicomSeries(other, bare.identity, bare.headers)
    if keyword == "SeriesInstanceUID":
        assert kept(another).SeriesInstanceUID != kept(bare).SeriesInstanceUID


@pytest.mark.parametrize("name", ["pct_on_ict.nii.gz", "labels_on_ict.nii.gz"])
def test_times_are_of_the_sources_zone(source: DicomSeries, tmp_path: Path, name: str) -> None:
    path, _ = artifact(name, tmp_path)
    made = datetime(2026, 7, 1, 23, 30, tzinfo=UTC).timestamp()
    os.utime(path, (made, made))

    def first(series: DicomSeries) -> pydicom.Dataset:
        with zipfile.ZipFile(io.BytesIO(export(name, path, RESULT, kept(series)))) as archive:
            return pydicom.dcmread(io.BytesIO(archive.read(archive.namelist()[0])))

    told = first(without(source, TimezoneOffsetFromUTC="+0200"))
    assert told.TimezoneOffsetFromUTC == "+0200"
    assert (told.ContentDate, told.ContentTime) == ("20260702", "013000")
    # The study's times are the scanner's: a zone that the source does not name is not made up.
    for silent in (source, without(source, TimezoneOffsetFromUTC="summer")):
        told = first(silent)
        assert "TimezoneOffsetFromUTC" not in told
        assert told.ContentTime == datetime.fromtimestamp(made).strftime("%H%M%S")


def test_vault_hides_and_gives_back(source: DicomSeries, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    facts = vault.keep(tmp_path / "sealed", source)
    sealed = (tmp_path / "sealed").read_bytes()
    for secret in (toy_dicom.PATIENT_ID, "Müller"):
        assert secret.encode("latin-1") not in sealed
        assert secret not in str(facts)
    opened = Vault(tmp_path / "key").open(tmp_path / "sealed")
    assert (opened.PatientID, str(opened.PatientName)) == (toy_dicom.PATIENT_ID, PATIENT)
    # Only what goes back is kept at all.
    assert "SeriesDescription" not in opened
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    check_same_patient(facts, [facts, {}])
    with pytest.raises(RequestError, match="patient"):
        check_same_patient(facts, [facts | {"patient": "another"}])
