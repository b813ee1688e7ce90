from __future__ import annotations

import logging
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import SLICES, as_bytes, enhanced, one, series, stored, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from hepalign.errors import BadInputError
from hepalign.image.dicom import series_identity
from hepalign.image.read import read_volume

PATIENT_DATA = ("P-4711", "Doe", "Jane", "1.2.5")


def refused(path: Path, code: str, status: int = 422, **options: bool) -> str:
    with pytest.raises(BadInputError) as error:
        read_volume(path, **options)  # type: ignore[arg-type]
    assert (error.value.code, error.value.status) == (code, status)
    assert not any(word in error.value.message for word in (*PATIENT_DATA, str(path.parent)))
    return error.value.message


def one_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_fault_23_a_missing_slice_is_named(tmp_path: Path) -> None:
    kept = [dataset for k, dataset in enumerate(series()) if k != 2]
    message = refused(write(tmp_path / "ct", kept), "missing_slice")
    assert "1 slices are missing: between slices 2 and 3 of 4" in message
    assert "6.00 mm instead of 3.00" in message


def test_fault_23_uneven_and_doubled_slices(tmp_path: Path) -> None:
    uneven = series()
    uneven[-1].ImagePositionPatient = (np.asarray(uneven[-1].ImagePositionPatient) + 0.7 * direction(uneven)).tolist()
    refused(write(tmp_path / "uneven", uneven), "uneven_slices")
    echoes = [*series(), one(2, SOPInstanceUID="1.2.3.99")]
    refused(write(tmp_path / "echoes", echoes), "duplicate_position")
    drifting = series()
    drifting[2].ImagePositionPatient = (np.asarray(drifting[2].ImagePositionPatient) + across(drifting)).tolist()
    refused(write(tmp_path / "drift", drifting), "uneven_slices")


def direction(datasets: Sequence[Dataset]) -> np.ndarray:
    cosines = np.asarray(datasets[0].ImageOrientationPatient)
    return np.cross(cosines[:3], cosines[3:])


def across(datasets: Sequence[Dataset]) -> np.ndarray:
    return np.asarray(datasets[0].ImageOrientationPatient[:3], dtype=float)


def test_fault_24_localizer_in_the_series(tmp_path: Path) -> None:
    scout = one(7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    folder = write(tmp_path / "ct", [*series(), scout])
    assert "1 of 6 images are localizers" in refused(folder, "localizer")
    warnings: list[str] = []
    volume = read_volume(folder, drop_localizers=True, report=warnings)
    np.testing.assert_array_equal(volume.data, stored().transpose(2, 1, 0) - 1024.0)
    assert warnings == ["ct: 1 localizer images were left out"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"PatientID": "P-0815"}, "mixed_patients"),
        ({"PatientName": "Roe^Richard"}, "mixed_patients"),
        ({"SeriesInstanceUID": "1.2.99"}, "mixed_series"),
        ({"StudyInstanceUID": "1.2.99"}, "mixed_series"),
        ({"FrameOfReferenceUID": "1.2.99"}, "mixed_frames"),
        ({"Modality": "MR"}, "mixed_series"),
        ({"PixelSpacing": [3, 3]}, "mixed_geometry"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixed_geometry"),
    ],
)
def test_fault_25_mixed_images(tmp_path: Path, change: dict[str, object], code: str) -> None:
    refused(write(tmp_path / "ct", [*series()[:-1], one(SLICES - 1, **change)]), code)  # type: ignore[arg-type]


def test_fault_26_duplicates(tmp_path: Path) -> None:
    warnings: list[str] = []
    volume = read_volume(write(tmp_path / "same", [*series(), one(1)]), report=warnings)
    assert volume.geometry.shape[2] == SLICES
    assert warnings == ["same: 1 images came twice; each is used once"]
    other = one(1, PixelData=stored()[3].tobytes())
    refused(write(tmp_path / "differ", [*series(), other]), "duplicate_instance", 409)


def test_fault_27_gantry_tilt(tmp_path: Path) -> None:
    tilted = series()
    for k, dataset in enumerate(tilted):
        shift = 0.8 * k * np.asarray(dataset.ImageOrientationPatient[3:], dtype=float)
        dataset.ImagePositionPatient = (np.asarray(dataset.ImagePositionPatient) + shift).tolist()
    folder = write(tmp_path / "ct", tilted)
    assert "14.9°" in refused(folder, "gantry_tilt")
    directions = read_volume(folder, resample_tilt=True).geometry.direction
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)


def test_fault_28_deflated_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(9, wbits=-15)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    path = one_file(tmp_path / "deflated.dcm", bytes(128) + b"DICM" + meta + body)
    tracemalloc.start()
    refused(path, "unsupported_transfer_syntax", 415)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.3.4", "Doe^Jane"])
def test_fault_28_unsupported_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    content = as_bytes(one(0))
    value = syntax.encode().ljust(len(syntax) + len(syntax) % 2, b"\0")
    old = b"UI\x14\x001.2.840.10008.1.2.1\0"
    assert old in content
    path = one_file(tmp_path / "video.dcm", content.replace(old, b"UI" + struct.pack("<H", len(value)) + value, 1))
    refused(path, "unsupported_transfer_syntax", 415)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_fault_29_deep_sequences(tmp_path: Path, explicit: bool, undefined: bool) -> None:
    inner, order = b"", "<"
    for _ in range(400):
        size = 0xFFFFFFFF if undefined else len(inner)
        item = b"\xfe\xff\x00\xe0" + struct.pack(order + "L", size) + inner
        item += b"\xfe\xff\x0d\xe0" + bytes(4) if undefined else b""
        size = 0xFFFFFFFF if undefined else len(item)
        head = b"\x08\x00\x40\x11" + (b"SQ\0\0" if explicit else b"") + struct.pack(order + "L", size)
        inner = head + item + (b"\xfe\xff\xdd\xe0" + bytes(4) if undefined else b"")
    syntax = b"1.2.840.10008.1.2.1\0" if explicit else b"1.2.840.10008.1.2\0"
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    refused(one_file(tmp_path / "deep.dcm", bytes(128) + b"DICM" + meta + inner), "deep_sequences")


def test_fault_29_shallow_sequences_are_fine(tmp_path: Path) -> None:
    nested = Dataset()
    for _ in range(6):
        parent = Dataset()
        parent.ReferencedImageSequence = Items([nested, nested])
        nested = parent
    folder = write(tmp_path / "ct", series(ReferencedImageSequence=Items([nested])))
    assert read_volume(folder).geometry.shape[2] == SLICES


@pytest.mark.parametrize("change", [{"Rows": 60000, "Columns": 60000}, {"Rows": 5}, {"Rows": 7}, {"Columns": 0}])
def test_fault_30_rows_and_columns_that_lie(tmp_path: Path, change: dict[str, int]) -> None:
    huge = change.get("Rows") == 60000
    refused(
        write(tmp_path / "ct", series(**change)),
        "too_large" if huge else "pixel_size_mismatch" if min(change.values()) else "missing_geometry",
        413 if huge else 422,
    )


def test_fault_30_frames_that_lie(tmp_path: Path) -> None:
    dataset = enhanced()
    dataset.PixelData = dataset.PixelData[:-96]
    refused(one_file(tmp_path / "short.dcm", as_bytes(dataset)), "pixel_size_mismatch")


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.JPEGLSLossless])
def test_fault_30_codestreams_of_another_size(tmp_path: Path, syntax: str) -> None:
    datasets = series(PixelRepresentation=0)
    for dataset in datasets:
        dataset.compress(syntax)
        dataset.Rows, dataset.Columns = 4, 4
    codes = {"pixel_size_mismatch", "bad_pixels"}
    with pytest.raises(BadInputError) as error:
        read_volume(write(tmp_path / "ct", datasets))
    assert error.value.code in codes


def test_fault_30_a_jpeg_2000_bomb_is_seen_before_it_is_decoded(tmp_path: Path) -> None:
    size = struct.pack(">H4L", 0, 60000, 60000, 0, 0)
    stream = b"\xff\x4f\xff\x51" + struct.pack(">H", 41) + size + bytes(100)
    datasets = series(PixelRepresentation=0)
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    refused(write(tmp_path / "ct", datasets), "pixel_size_mismatch")


def test_fault_33_patient_data_stay_out_of_errors_and_logs(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("whole", "pct"):
        folder = write(tmp_path / name, series(PatientBirthDate="Doe^Jane P-4711"))
    broken = as_bytes(one(8, PatientBirthDate="Doe^Jane P-4711"))
    (folder / "Doe^Jane broken.dcm").write_bytes(broken[:-5])
    caplog.clear()
    recwarn.clear()
    refused(folder, "truncated")
    read_volume(tmp_path / "whole")
    captured = capfd.readouterr()
    said = caplog.text + captured.out + captured.err + "".join(str(warning.message) for warning in recwarn.list)
    assert not any(word in said for word in PATIENT_DATA)


def test_fault_34_burned_in_annotation(tmp_path: Path) -> None:
    refused(write(tmp_path / "ct", series(BurnedInAnnotation="YES")), "burned_in_annotation")
    assert read_volume(write(tmp_path / "clean", series(BurnedInAnnotation="NO"))).geometry.shape[2] == SLICES


def test_fault_48_identities_can_be_compared(tmp_path: Path) -> None:
    pct = series_identity(write(tmp_path / "pct", series()))
    ict = series_identity(write(tmp_path / "ict", series(PatientID="P-0815", PatientName="Roe")))
    assert pct.patient != ict.patient


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImagePositionPatient": None}, "missing_geometry"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "missing_geometry"),
        ({"PixelSpacing": [0, 1]}, "missing_geometry"),
        ({"RescaleSlope": "1e400"}, "missing_geometry"),
        ({"PixelData": None}, "bad_pixels"),
        ({"SamplesPerPixel": 3}, "unsupported_voxels"),
        ({"PhotometricInterpretation": "RGB"}, "unsupported_voxels"),
        ({"BitsAllocated": 32}, "unsupported_voxels"),
        ({"Modality": "US"}, "unsupported_modality"),
        ({"PixelSpacing": [200, 200]}, "implausible_grid"),
    ],
)
def test_other_images_that_are_no_volume(tmp_path: Path, change: dict[str, object], code: str) -> None:
    refused(write(tmp_path / "ct", series(**change)), code)
