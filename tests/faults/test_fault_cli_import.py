"""FAULTS 1-40, 42, 48 and 81 through `hepalign data import` and `data check`, on inputs of their own.

Every refusal is one line `error[code]: …` on stderr and one JSON object on stdout, with its exit status, without a
folder, a file's own name or a patient in it, and leaves no case behind. What is fine is imported.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid
from typer.main import get_command

from hepalign.cases.cohort import open_cohort
from hepalign.cli.app import app

SECRETS = ("Kowalska", "Zofia", "19510203", "PAT-778899", "Sankt-Anna")
# A trunk of 24 x 20 x 18 voxels at 12 x 11 x 10 mm, tilted by a few degrees: nothing lies on a round number.
SHAPE = (24, 20, 18)
TURN = np.array([[0.9962, -0.0872, 0.0], [0.0872, 0.9962, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.linalg.qr(TURN)[0] @ np.diag(np.sign(np.diag(np.linalg.qr(TURN)[1]))) @ np.diag([12.0, 11.0, 10.0])
AFFINE[:3, 3] = (-141.0, -97.0, 212.0)
# the same places counted from the other side
MIRROR = np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
INDEX = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
BODY = (((INDEX - (11.5, 9.5, 8.5)) / (9.0, 6.5, 30.0)) ** 2).sum(axis=-1) < 1
CT = np.where(BODY, 45 + 12 * np.sin(INDEX.sum(axis=-1)), -1000).astype(np.int16)
MR = np.where(BODY, 310 + 40 * np.cos(INDEX.sum(axis=-1)), 4).astype(np.float32)


def trunk(data: np.ndarray = CT, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image) -> bytes:
    image = kind(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def patched(at: int, layout: str, *values: float, data: np.ndarray = CT) -> bytes:
    content = bytearray(trunk(data))
    struct.pack_into("<" + layout, content, at, *values)
    return bytes(content)


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def swapped(data: np.ndarray = CT, kind: type = nib.Nifti1Image) -> bytes:
    header = nib.Nifti1Header(endianness=">") if kind is nib.Nifti1Image else nib.Nifti2Header(endianness=">")
    image = kind(data.astype(data.dtype.newbyteorder(">")), AFFINE, header)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    return bytes(image.to_bytes())


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object], str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        get_command(app)(args=[*words, "--json"], prog_name="hepalign")
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    return int(str(ended.value.code or 0)), json.loads(line), err


def bring(folder: Path, capfd: pytest.CaptureFixture[str], **options: str | Path) -> tuple[int, dict[str, object], str]:
    words = ["data", "import", "--out", str(folder / "cohort"), "--case", "c1", "--shape", "24,24,24"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([str(value)] if str(value) else [])]
    return run(words, capfd)


def refused(answer: tuple[int, dict[str, object], str], folder: Path, code: str, status: int = 3) -> str:
    exit_status, data, err = answer
    error = data["error"]
    assert isinstance(error, dict)
    assert (exit_status, error["code"]) == (status, code), error
    lines = [line for line in err.splitlines() if line.startswith("error[")]
    assert lines == [f"error[{code}]: {error['message']}"]
    for secret in (*SECRETS, "Traceback", str(folder), str(folder.parent)):
        assert secret not in err + json.dumps(data), secret
    left = list((folder / "cohort" / "cases").glob("*")) if (folder / "cohort" / "cases").exists() else []
    assert left == []
    assert not (folder / "cohort" / "manifest.json").exists()
    return str(error["message"])


def fine(answer: tuple[int, dict[str, object], str], folder: Path) -> list[str]:
    exit_status, data, err = answer
    assert exit_status == 0, (data, err)
    assert open_cohort(folder / "cohort").cases()[0].id == "c1"
    for secret in SECRETS:
        assert secret not in err + json.dumps(data)
    return list(data["warnings"])  # type: ignore[call-overload]


def qform_only_zero() -> bytes:
    content = bytearray(trunk())
    struct.pack_into("<2h", content, 252, 0, 0)
    return bytes(content)


def zip_bytes(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sheared() -> bytes:
    affine = AFFINE.copy()
    affine[:3, 1] += 0.1 * affine[:3, 0]
    image = nib.Nifti1Image(CT, affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    return bytes(image.to_bytes())


def bomb() -> bytes:
    """A small file whose declared voxels and the gigabytes that follow are one flushed block, again and again."""
    squeeze = zlib.compressobj(6, wbits=31)
    start = squeeze.compress(trunk()[:352]) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(bytes(1 << 22)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return start + block * 1000


def knocked_flat() -> bytes:
    content = bytearray(patched(296, "4f", *AFFINE[0].tolist()))
    struct.pack_into("<h", content, 252, 0)
    return bytes(content)


def scaled(value: float) -> bytes:
    return patched(112, "2f", value, 0.0)


NIFTI: list[tuple[str, Callable[[], bytes], str]] = [
    ("01-bomb-that-is-no-nifti", lambda: gzip.compress(bytes(100 << 20), 1), "too_large"),
    ("03-gigabytes-after-the-voxels", bomb, "trailing_data"),
    ("04-truncated-gzip", lambda: packed(trunk())[:-900], "truncated"),
    ("04-bad-crc", lambda: packed(trunk())[:-8] + b"\1\2\3\4" + packed(trunk())[-4:], "corrupt_gzip"),
    ("05-truncated", lambda: trunk()[:-1], "truncated"),
    ("06-dims-32767", lambda: patched(40, "4h", 3, 32767, 32767, 32767), "too_large"),
    ("06-dims-overflow-64-bits", lambda: patched(40, "8h", 7, *[32767] * 7), "not_3d"),
    ("07-dim-0", lambda: patched(40, "4h", 3, 24, 0, 18), "bad_header"),
    ("07-dim-negative", lambda: patched(40, "4h", 3, 24, -20, 18), "bad_header"),
    ("07-ndim-9", lambda: patched(40, "h", 9), "bad_header"),
    ("08-vox-offset-past-the-end", lambda: patched(108, "f", 1e7), "truncated"),
    ("08-vox-offset-nan", lambda: patched(108, "f", float("nan")), "bad_header"),
    ("08-vox-offset-inside-the-header", lambda: patched(108, "f", 16.0), "bad_header"),
    ("09-affine-nan", lambda: patched(300, "f", float("nan")), "bad_affine"),
    ("09-affine-inf", lambda: patched(292, "f", float("inf")), "bad_affine"),
    ("10-singular", knocked_flat, "singular_affine"),
    ("10-sheared", sheared, "sheared_affine"),
    ("11-no-orientation", qform_only_zero, "no_orientation"),
    ("12-sform-is-not-qform", lambda: patched(268, "f", 40.0), "orientation_conflict"),
    ("14-spacing-in-metres", lambda: trunk(affine=AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1])), "implausible_grid"),
    ("14-spacing-of-a-house", lambda: trunk(affine=AFFINE @ np.diag([20.0, 20, 20, 1])), "implausible_grid"),
    ("15-four-dimensions", lambda: trunk(np.stack([CT, CT], axis=-1)), "not_3d"),
    ("15-complex", lambda: trunk(CT.astype(np.complex64)), "unsupported_voxels"),
    ("15-rgb", lambda: trunk(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "unsupported_voxels"),
    ("16-nan-voxel", lambda: trunk(np.where(INDEX[..., 0] == 3, np.nan, CT).astype(np.float32)), "nonfinite_voxels"),
    ("16-slope-inf", lambda: scaled(float("inf")), "nonfinite_scale"),
    ("17-zip", lambda: zip_bytes(**{"Kowalska.txt": b"x"}), "no_images"),
    ("17-png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "unsupported_media"),
    ("18-empty", lambda: b"", "empty_file"),
    ("20-mr-as-ct", lambda: trunk(MR), "modality_mismatch"),
    ("22-constant", lambda: trunk(np.full(SHAPE, -1000, np.int16)), "constant_volume"),
]


@pytest.mark.parametrize(("make", "code"), [case[1:] for case in NIFTI], ids=[case[0] for case in NIFTI])
def test_fault_rows_of_nifti_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], bytes], code: str
) -> None:
    path = tmp_path / "Kowalska_Zofia.nii.gz"
    path.write_bytes(make())
    refused(bring(tmp_path, capfd, pct=path), tmp_path, code)


def test_fault_20_a_ct_sent_as_mr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.nii").write_bytes(trunk())
    refused(bring(tmp_path, capfd, pmr=tmp_path / "x.nii"), tmp_path, "modality_mismatch")


SOUND: list[tuple[str, Callable[[], bytes]]] = [
    ("13-negative-determinant", lambda: trunk(CT[::-1].copy(), AFFINE @ MIRROR)),
    ("19-big-endian", swapped),
    ("19-nifti-2", lambda: trunk(kind=nib.Nifti2Image)),
    ("19-nifti-2-big-endian", lambda: swapped(kind=nib.Nifti2Image)),
    ("19-float64", lambda: trunk(CT.astype(np.float64))),
]


@pytest.mark.parametrize("make", [case[1] for case in SOUND], ids=[case[0] for case in SOUND])
def test_fault_rows_that_are_no_faults(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], bytes]
) -> None:
    (tmp_path / "image.nii").write_bytes(make())
    assert fine(bring(tmp_path, capfd, pct=tmp_path / "image.nii"), tmp_path) == ["pct: no liver mask"]
    volume = open_cohort(tmp_path / "cohort").volume(open_cohort(tmp_path / "cohort").cases()[0], "pct")
    # the trunk's middle lies where it lay
    inside = volume.geometry.index_to_world(np.argwhere(volume.data > -500)).mean(axis=0)
    middle = nib.affines.apply_affine(AFFINE, np.argwhere(BODY).mean(axis=0))
    np.testing.assert_allclose(inside, middle, atol=6.0)


def test_fault_02_an_honest_mask_at_1000_to_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = np.zeros((240, 200, 180), np.uint8)
    grid[110:150, 90:120, 60:130] = 1
    affine = AFFINE @ np.diag([0.1, 0.1, 0.1, 1])
    mask = gzip.compress(trunk(grid, affine), 9)
    assert len(mask) * 400 < grid.nbytes
    (tmp_path / "ct.nii").write_bytes(trunk())
    (tmp_path / "liver.nii.gz").write_bytes(mask)
    words = fine(
        bring(tmp_path, capfd, pct=tmp_path / "ct.nii", label=f"pct:liver={tmp_path / 'liver.nii.gz'}"), tmp_path
    )
    assert words == ["pct_liver: was on another grid and was resampled to its image's"]


def test_fault_12_the_caller_may_choose(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(patched(268, "f", 40.0))
    for form, shift in (("sform", 0.0), ("qform", 181.0)):
        folder = tmp_path / form
        folder.mkdir()
        fine(bring(folder, capfd, pct=path, orientation=form), folder)
        cohort = open_cohort(folder / "cohort")
        volume = cohort.volume(cohort.cases()[0], "pct")
        inside = volume.geometry.index_to_world(np.argwhere(volume.data > -500)).mean(axis=0)
        middle = nib.affines.apply_affine(AFFINE, np.argwhere(BODY).mean(axis=0))
        np.testing.assert_allclose(inside, middle + np.array([shift, 0, 0]), atol=6.0)


def test_fault_21_padding_is_told_and_becomes_air(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, padding in enumerate((-2000, -3024)):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = CT.copy()
        data[(INDEX[..., 0] - 11.5) ** 2 / 144 + (INDEX[..., 1] - 9.5) ** 2 / 100 > 1] = padding
        (folder / "x.nii").write_bytes(trunk(data))
        words = fine(bring(folder, capfd, pct=folder / "x.nii"), folder)
        assert any("padding" in word and str(padding) in word for word in words)
        cohort = open_cohort(folder / "cohort")
        assert cohort.volume(cohort.cases()[0], "pct").data.min() >= -1024


# --- DICOM ---------------------------------------------------------------------------------------------------------


def slices(data: np.ndarray = CT, *, frame: str = "1.2.826.1", patient: str = "PAT-778899") -> list[Dataset]:
    """The trunk as a CT series, oblique, feet first, with a patient all over it."""
    series, study = generate_uid(), generate_uid()
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    found = []
    for k in reversed(range(data.shape[2])):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
        one.PatientName, one.PatientID, one.PatientBirthDate = "Kowalska^Zofia", patient, "19510203"
        one.InstitutionName, one.StudyDescription = "Sankt-Anna", "Kowalska liver"
        one.Modality, one.ImageType, one.SeriesNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 4
        one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID = series, study, frame
        one.InstanceNumber, one.Rows, one.Columns = k + 1, data.shape[1], data.shape[0]
        one.PixelSpacing = [11.0, 12.0]
        one.ImageOrientationPatient = [*(lps[:3, 0] / 12).round(9).tolist(), *(lps[:3, 1] / 11).round(9).tolist()]
        one.ImagePositionPatient = (lps @ [0, 0, k, 1])[:3].round(6).tolist()
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept = "1", "-1024"
        one.PixelData = (data[:, :, k].T + 1024).astype(np.uint16).tobytes()
        found.append(one)
    return found


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def stored(folder: Path, files: list[bytes]) -> Path:
    folder.mkdir(parents=True)
    for number, content in enumerate(files):
        (folder / f"Kowalska{number:03d}").write_bytes(content)
    return folder


def changed(position: int, **values: object) -> list[bytes]:
    found = slices()
    for keyword, value in values.items():
        setattr(found[position], keyword, value)
    return [encoded(one) for one in found]


def all_changed(**values: object) -> list[bytes]:
    found = slices()
    for one in found:
        for keyword, value in values.items():
            setattr(one, keyword, value)
    return [encoded(one) for one in found]


def shuffled_gap() -> list[bytes]:
    found = slices()
    del found[7:9]
    return [encoded(one) for one in found]


def tilted() -> list[Dataset]:
    found = slices()
    for one in found:
        height = float(one.ImagePositionPatient[2])
        one.ImagePositionPatient = [
            float(one.ImagePositionPatient[0]), float(one.ImagePositionPatient[1]) + 0.25 * height, height
        ]  # fmt: skip
    return found


def deflated() -> list[bytes]:
    one = slices()[0]
    one.PixelData = bytes(one.Rows * one.Columns * 2)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return [encoded(one)]


def deep() -> list[bytes]:
    """400 sequences in each other, of undefined length, before the pixels (explicit little endian by hand)."""
    content = encoded(slices()[0])
    sequence = struct.pack("<2H2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<2HL", 0xFFFE, 0xE000, 2**32 - 1
    )
    ends = struct.pack("<2HL", 0xFFFE, 0xE00D, 0) + struct.pack("<2HL", 0xFFFE, 0xE0DD, 0)
    at = content.index(struct.pack("<2H2s", 0x7FE0, 0x0010, b"OW"))
    return [content[:at] + sequence * 400 + ends * 400 + content[at:]]


def syntax(uid: str) -> list[bytes]:
    found = []
    for one in slices():
        content = encoded(one)
        old = one.file_meta.TransferSyntaxUID.encode()
        found.append(content.replace(old.ljust(20, b"\0"), uid.encode().ljust(20, b"\0"), 1))
    return found


DICOM: list[tuple[str, Callable[[], list[bytes]], str]] = [
    ("23-two-slices-missing", shuffled_gap, "missing_slice"),
    ("24-localizer", lambda: changed(3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    ("25-patients", lambda: changed(2, PatientID="X1"), "mixed_patients"),
    ("25-series", lambda: changed(2, SeriesInstanceUID="1.2.3.9"), "mixed_series"),
    ("25-frames", lambda: changed(2, FrameOfReferenceUID="1.2.3.9"), "mixed_frames"),
    ("26-one-uid-two-images", lambda: changed(2, SOPInstanceUID="1.2.3.4") + changed(3, SOPInstanceUID="1.2.3.4"), ""),
    ("27-tilt", lambda: [encoded(one) for one in tilted()], "gantry_tilt"),
    ("28-deflated", deflated, "unsupported_transfer_syntax"),
    ("28-jpip", lambda: syntax("1.2.840.10008.1.2.4.94"), "unsupported_transfer_syntax"),
    ("29-deep", deep, "deep_sequences"),
    ("30-rows-that-lie", lambda: all_changed(Rows=4000), "pixel_size_mismatch"),
    ("30-columns-that-lie", lambda: all_changed(Columns=3), "pixel_size_mismatch"),
    ("34-burned-in", lambda: changed(5, BurnedInAnnotation="YES"), "burned_in_annotation"),
]


@pytest.mark.parametrize(("make", "code"), [case[1:] for case in DICOM], ids=[case[0] for case in DICOM])
def test_fault_rows_of_dicom_folders(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[], list[bytes]],
    code: str,
) -> None:
    folder = stored(tmp_path / "Kowalska^Zofia", make())
    answer = bring(tmp_path, capfd, pct=folder)
    refused(answer, tmp_path, code or str(answer[1]["error"]["code"]))  # type: ignore[index]
    if not code:
        assert answer[1]["error"]["code"] in ("duplicate_instance", "mixed_series")  # type: ignore[index]
    assert not any(secret in caplog.text for secret in SECRETS)


def test_fault_23_the_gap_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "ct", shuffled_gap())
    message = refused(bring(tmp_path, capfd, pct=folder), tmp_path, "missing_slice")
    assert "2 slices are missing: between slices 9 and 10 of 16 lie 30.00 mm instead of 10.00" in message


def test_fault_24_localizers_are_dropped_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scout = slices()[0]
    found = slices()
    scout.SeriesInstanceUID, scout.StudyInstanceUID = found[0].SeriesInstanceUID, found[0].StudyInstanceUID
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    folder = stored(tmp_path / "ct", [encoded(one) for one in [*found, scout]])
    words = fine(bring(tmp_path, capfd, pct=folder, drop_localizers=""), tmp_path)
    assert "pct: 1 localizer images were left out" in words


def test_fault_25_one_of_the_series_by_its_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "ct", [encoded(one) for one in [*slices(), *slices(CT[:, :, ::-1])]])
    message = refused(bring(tmp_path, capfd, pct=folder), tmp_path, "mixed_series")
    assert "1: CT, 18 images of 20 × 24; 2: CT, 18 images of 20 × 24" in message
    fine(bring(tmp_path, capfd, pct=folder, series="pct=2"), tmp_path)


def test_fault_26_the_same_bytes_twice_count_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [encoded(one) for one in slices()]
    folder = stored(tmp_path / "ct", files + files[:2])
    assert "pct: 2 images came twice; each is used once" in fine(bring(tmp_path, capfd, pct=folder), tmp_path)


def test_fault_27_the_tilt_is_straightened_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "ct", [encoded(one) for one in tilted()])
    words = fine(bring(tmp_path, capfd, pct=folder, resample_tilt=""), tmp_path)
    assert "pct: the gantry was tilted; resampled onto a grid with right angles" in words


ZIPS: list[tuple[str, Callable[[], bytes], str]] = [
    ("31-zip-slip", lambda: zip_bytes(**{"../../Kowalska.dcm": b"x"}), "unsafe_archive"),
    ("31-absolute", lambda: zip_bytes(**{"/etc/Kowalska": b"x"}), "unsafe_archive"),
    ("31-drive", lambda: zip_bytes(**{"C:\\Kowalska\\a.dcm": b"x"}), "unsafe_archive"),
    ("31-nested", lambda: zip_bytes(a=zip_bytes(b=b"x")), "unsafe_archive"),
    ("32-million-members", lambda: b"PK\x03\x04" + bytes(26) + central_directory(1_000_000), "too_large"),
    ("32-forged-size", lambda: forged(zip_bytes(big=bytes(3 << 20))), "too_large"),
    ("truncated", lambda: zip_bytes(a=b"x" * 500)[:-30], "bad_archive"),
]


def central_directory(entries: int) -> bytes:
    count = min(entries, 0xFFFF)
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, entries * 60, 30)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 30 + entries * 0, 1)
    return zip64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, 0xFFFFFFFF, 30, 0)


def forged(archive: bytes) -> bytes:
    """The directory says ten bytes where three megabytes inflate."""
    content = bytearray(archive)
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, at + 24, 10)
    return bytes(content)


@pytest.mark.parametrize(("make", "code"), [case[1:] for case in ZIPS], ids=[case[0] for case in ZIPS])
def test_fault_rows_of_archives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], bytes], code: str
) -> None:
    (tmp_path / "Kowalska.zip").write_bytes(make())
    before = sorted(tmp_path.parent.parent.rglob("Kowalska*"))
    refused(bring(tmp_path, capfd, pct=tmp_path / "Kowalska.zip"), tmp_path, code)
    assert sorted(tmp_path.parent.parent.rglob("Kowalska*")) == before


def test_fault_33_nothing_of_the_patient_reaches_the_cohort(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "Kowalska", [encoded(one) for one in slices()])
    fine(bring(tmp_path, capfd, pct=folder), tmp_path)
    for path in sorted((tmp_path / "cohort").rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for secret in SECRETS:
            assert secret.encode() not in content, path.name
            assert secret not in path.name
    for case in ("PAT-778899", "kowalska-1", "x19510203"):
        words = ["data", "import", "--out", str(tmp_path / "other"), "--case", case, "--pct", str(folder)]
        status, data, err = run(words, capfd)
        assert status == 3
        assert data["error"]["code"] == "identifying_id"  # type: ignore[index]
        assert case not in err


# --- what comes beside an image ------------------------------------------------------------------------------------


def beside(
    folder: Path, capfd: pytest.CaptureFixture[str], **options: str | Path
) -> tuple[int, dict[str, object], str]:
    (folder / "ict.nii.gz").write_bytes(packed(trunk()))
    return bring(folder, capfd, ict=folder / "ict.nii.gz", **options)


def probe(folder: Path, content: bytes | dict[str, object]) -> Path:
    path = folder / ("probe.json" if isinstance(content, dict) else "probe.nii")
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def needle(affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE) -> bytes:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2 - 1 : shape[0] // 2 + 6, shape[1] // 2, shape[2] // 2] = 1
    return trunk(mask, affine)


def around(middle_mm: np.ndarray, half_mm: float) -> dict[str, object]:
    return {"kind": "box", "low_mm": (middle_mm - half_mm).tolist(), "high_mm": (middle_mm + half_mm).tolist()}


MIDDLE_MM = nib.affines.apply_affine(AFFINE, np.array([11.5, 9.5, 8.5]))


def test_fault_35_a_mask_on_another_grid(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finer = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    words = fine(beside(tmp_path, capfd, probe_mask=probe(tmp_path, needle(finer, (48, 40, 36)))), tmp_path)
    assert "ict_probe_mask: was on another grid and was resampled to the iCT's" in words


def box_everywhere() -> dict[str, object]:
    return around(MIDDLE_MM, 80.0)


def crossing() -> dict[str, object]:
    x, y, z = MIDDLE_MM.tolist()
    points = [[x, y], [x + 40, y + 40], [x + 40, y], [x, y + 40]]
    return {"kind": "polygon", "points_mm": points, "z_mm": [z, z + 20]}


def with_nan() -> dict[str, object]:
    return {"kind": "polygon", "points_mm": [[0, 0], [float("nan"), 1], [2, 2]], "z_mm": [0, 1]}


PROBES: list[tuple[str, Callable[[], bytes | dict[str, object]], str]] = [
    ("36-another-frame", lambda: needle(AFFINE @ np.array([[1, 0, 0, 90], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
     "frame_mismatch"),
    ("37-empty", lambda: trunk(np.zeros(SHAPE, np.uint8)), "empty_probe_mask"),
    ("37-outside", lambda: around(MIDDLE_MM + 900, 20.0), "empty_probe_mask"),
    ("38-over-a-fifth", box_everywhere, "probe_mask_too_large"),
    ("39-crosses-itself", crossing, "bad_probe_mask"),
    ("39-nan", with_nan, "bad_probe_mask"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "code"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES])
def test_fault_rows_of_probe_masks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], bytes | dict[str, object]], code: str
) -> None:
    refused(beside(tmp_path, capfd, probe_mask=probe(tmp_path, make())), tmp_path, code)


def test_fault_40_two_tumours_stay_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, values in (("binary", (1, 1)), ("numbered", (3, 9))):
        folder = tmp_path / name
        folder.mkdir()
        mask = np.zeros(SHAPE, np.uint8)
        mask[7:10, 8:11, 6:9], mask[14:16, 9:11, 10:12] = values
        (folder / "t.nii").write_bytes(trunk(mask))
        fine(beside(folder, capfd, label=f"ict:tumour={folder / 't.nii'}"), folder)
        cohort = open_cohort(folder / "cohort")
        found = cohort.volume(cohort.cases()[0], "ict_tumour").data
        wanted = {0, 1, 2} if name == "binary" else {0, 3, 9}
        assert set(np.unique(found).tolist()) == wanted
        assert (found == min(wanted - {0})).sum() > (found == max(wanted)).sum()


def test_fault_42_images_of_two_regions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    away = AFFINE.copy()
    away[2, 3] += 700
    (tmp_path / "pct.nii").write_bytes(trunk(affine=away))
    refused(beside(tmp_path, capfd, pct=tmp_path / "pct.nii"), tmp_path, "no_overlap")


def test_fault_48_series_of_two_patients(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pct = stored(tmp_path / "a", [encoded(one) for one in slices()])
    ict = stored(tmp_path / "b", [encoded(one) for one in slices(patient="PAT-112233")])
    message = refused(bring(tmp_path, capfd, pct=pct, ict=ict), tmp_path, "patient_mismatch")
    assert "PAT" not in message


def test_fault_81_a_file_changed_since_the_manifest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fine(beside(tmp_path, capfd), tmp_path)
    path = tmp_path / "cohort" / "cases" / "c1" / "ict.nii.gz"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    status, data, err = run(["data", "check", str(tmp_path / "cohort")], capfd)
    assert status == 3
    assert [(found["file"], found["code"]) for found in data["findings"]] == [("ict", "changed_file")]  # type: ignore[index, attr-defined]
    assert "Traceback" not in err


def test_dicom_is_what_pydicom_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The series of this file is one that others read: not only our reader's idea of DICOM."""
    folder = stored(tmp_path / "ct", [encoded(one) for one in slices()])
    one = pydicom.dcmread(sorted(folder.iterdir())[0])
    assert one.pixel_array.shape == (20, 24)
    fine(bring(tmp_path, capfd, pct=folder), tmp_path)
