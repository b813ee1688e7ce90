from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import (
    COLUMNS,
    OBLIQUE,
    ORIGIN,
    ROWS,
    SLICES,
    SPACING,
    as_bytes,
    enhanced,
    one,
    series,
    stored,
    write,
    zipped,
)
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from hepalign.errors import BadInputError, UsageError
from hepalign.image.dicom import load_series, read_series, series_identity
from hepalign.image.read import read_volume
from hepalign.image.resample import resample

HU = stored().transpose(2, 1, 0).astype(np.float32) - 1024


def affine_ras() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * SPACING
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    volume = read_series(write(tmp_path / "ct", series()))
    np.testing.assert_array_equal(volume.data, HU)
    np.testing.assert_allclose(volume.geometry.affine, affine_ras(), atol=1e-6)
    assert volume.geometry.shape == (COLUMNS, ROWS, SLICES)


def test_simpleitk_places_it_alike(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", series())
    paths = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(paths)
    volume = read_series(folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.data)
    for index in [(0, 0, 0), (7, 5, 4), (3, 1, 2)]:
        theirs = np.asarray(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose(volume.geometry.index_to_world(index), theirs, atol=0.01)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes(tmp_path: Path, syntax: str) -> None:
    datasets = series()
    for k, dataset in enumerate(datasets):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = stored()[k].astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"
    np.testing.assert_array_equal(read_series(write(tmp_path / "ct", datasets)).data, HU)


def test_run_length_encoding(tmp_path: Path) -> None:
    datasets = series()
    for dataset in datasets:
        dataset.compress(RLELossless)
    np.testing.assert_array_equal(read_series(write(tmp_path / "ct", datasets)).data, HU)


def test_jpeg_ls(tmp_path: Path) -> None:
    datasets = series(PixelRepresentation=0)
    for dataset in datasets:
        dataset.compress(pydicom.uid.JPEGLSLossless)
    np.testing.assert_array_equal(read_series(write(tmp_path / "ct", datasets)).data, HU)


def test_jpeg_2000(tmp_path: Path) -> None:
    datasets = series(PixelRepresentation=0)
    for k, dataset in enumerate(datasets):
        stream = io.BytesIO()
        Image.fromarray(stored()[k].astype(np.uint16)).save(stream, "JPEG2000", no_jp2=True)
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    np.testing.assert_array_equal(read_series(write(tmp_path / "ct", datasets)).data, HU)


def jpeg_lossless(folder: Path) -> list[pydicom.Dataset]:
    """The series packed by SimpleITK (process 14, selection value 1), which no plugin of pydicom here writes."""
    datasets = series(PixelRepresentation=0, RescaleIntercept=0)
    plain, packed = folder / "plain.dcm", folder / "packed.dcm"
    for dataset in datasets:
        plain.write_bytes(as_bytes(dataset))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(packed))
        writer.Execute(sitk.ReadImage(str(plain), sitk.sitkUInt16))
        compressed = pydicom.dcmread(packed)
        dataset.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
        dataset["PixelData"] = compressed["PixelData"]
        dataset.RescaleIntercept = -1024
    return datasets


def test_jpeg_lossless_goes_through_gdcm(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_series(write(tmp_path / "ct", jpeg_lossless(tmp_path))).data, HU)


def test_a_stream_that_crashes_the_decoder_costs_a_process_of_its_own(tmp_path: Path) -> None:
    datasets = jpeg_lossless(tmp_path)
    stream = bytearray(datasets[0].PixelData)
    # 255 bits a sample have been seen to end GDCM with a segmentation fault.
    stream[stream.index(b"\xff\xc3") + 4] = 255
    datasets[0].PixelData = bytes(stream)
    with pytest.raises(BadInputError) as error:
        read_series(write(tmp_path / "ct", datasets))
    assert error.value.code == "bad_pixels"


def test_a_multi_frame_object_is_the_same_volume(tmp_path: Path) -> None:
    (tmp_path / "mr.dcm").write_bytes(as_bytes(enhanced([3, 0, 4, 1, 2])))
    volume = read_volume(tmp_path / "mr.dcm")
    np.testing.assert_allclose(volume.geometry.affine, affine_ras(), atol=1e-6)
    raw = stored().transpose(2, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(volume.data, raw * np.arange(1, SLICES + 1) + 10)


def test_folder_and_zip_are_one(tmp_path: Path) -> None:
    folder = read_volume(write(tmp_path / "ct", series()))
    packed = read_volume(zipped(tmp_path / "ct.zip", series()))
    np.testing.assert_array_equal(folder.data, packed.data)
    assert folder.geometry.same_grid(packed.geometry)


def test_headers_come_in_slice_order_without_pixels(tmp_path: Path) -> None:
    found = load_series(write(tmp_path / "ct", series()))
    assert [header.InstanceNumber for header in found.headers] == [1, 2, 3, 4, 5]
    assert not any("PixelData" in header for header in found.headers)
    assert found.identity.patient == "P-4711"
    assert series_identity(tmp_path / "ct") == found.identity
    assert (found.identity.modality, found.identity.frame_of_reference) == ("CT", "1.2.6")


def test_companions_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", series())
    report = one(9, Modality="SR", Rows=None, Columns=None, PixelData=None)
    (folder / "report.dcm").write_bytes(as_bytes(report))
    (folder / "README.txt").write_text("viewer", encoding="utf-8")
    warnings: list[str] = []
    np.testing.assert_array_equal(read_volume(folder, report=warnings).data, HU)
    assert warnings == ["ct: 2 files that are no images were left out"]


def test_a_slice_in_every_direction_sorts(tmp_path: Path) -> None:
    for number, sign in enumerate(((1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1))):
        turned = np.eye(3) * sign
        volume = read_volume(write(tmp_path / str(number), series(direction=turned)))
        assert np.linalg.det(volume.geometry.affine) > 0
        point = np.diag([-1, -1, 1]) @ (ORIGIN + turned @ (np.array([3, 2, 4]) * SPACING))
        at = np.round(volume.geometry.world_to_index(point)).astype(int)
        assert volume.data[tuple(at)] == HU[3, 2, 4]


def test_a_tilted_gantry_is_resampled_on_request(tmp_path: Path) -> None:
    along = OBLIQUE[:, 2] + 0.2 * OBLIQUE[:, 1]
    datasets = [one(k, ImagePositionPatient=(ORIGIN + k * SPACING[2] * along).tolist()) for k in range(SLICES)]
    ramp_axis = OBLIQUE @ (1.0, 2.0, 3.0)
    for k, dataset in enumerate(datasets):
        rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
        points = np.asarray(dataset.ImagePositionPatient) + (
            columns[..., None] * SPACING[0] * OBLIQUE[:, 0] + rows[..., None] * SPACING[1] * OBLIQUE[:, 1]
        )
        dataset.PixelData = np.round(1000 + 10 * (points - ORIGIN) @ ramp_axis).astype(np.int16).tobytes()
        assert k == dataset.InstanceNumber - 1
    folder, warnings = write(tmp_path / "ct", datasets), []
    volume = read_volume(folder, resample_tilt=True, report=warnings)
    assert "tilted" in warnings[0]
    directions = volume.geometry.direction
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(volume.geometry.spacing_mm, SPACING, atol=1e-6)
    points_lps = volume.geometry.grid_mm() * (-1, -1, 1)
    expected = 1000 - 1024 + 10 * (points_lps - ORIGIN) @ ramp_axis
    inside = volume.data > volume.data.min()
    inner = np.zeros_like(inside)
    inner[1:-1, 2:-3, :] = inside[1:-1, 2:-3, :]
    assert inner.sum() > 40
    np.testing.assert_allclose(volume.data[inner], expected[inner], atol=1.5)


def test_a_lone_slice_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as error:
        read_volume(write(tmp_path / "one", [one(0)]))
    assert error.value.code == "too_few_slices"
    with pytest.raises(UsageError) as missing:
        read_series(tmp_path / "nothing")
    assert missing.value.code == "no_such_file"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError) as empty:
        read_volume(tmp_path / "empty")
    assert (empty.value.code, empty.value.status) == ("no_images", 422)


def test_real_slices_equal_simpleitk(real_data: Path) -> None:
    folder = real_data / "dicom" / "totalsegmentator-ct"
    volume = read_volume(folder)
    position = lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])  # noqa: E731
    image = sitk.ReadImage([str(path) for path in sorted(folder.iterdir(), key=position)])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.data)
    assert pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID == JPEG2000Lossless
    half = resample(volume, volume.geometry.with_shape((64, 64, 20)))
    assert abs(float(half.data.mean()) - float(volume.data.mean())) < 20
