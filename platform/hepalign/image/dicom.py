"""One CT or MR series, single-frame or multi-frame, from a folder, a zip or a file, as a volume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError
from hepalign.image.dicom_files import image_objects
from hepalign.image.dicom_listing import chosen_series, series_of, several_series
from hepalign.image.dicom_pixels import read_pixels
from hepalign.image.dicom_planes import Plane, grid_of, sorted_planes, tilt_of, upright
from hepalign.image.nifti_header import MAX_SHEAR, MAX_VOXEL_BYTES, check_grid
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

MODALITIES = ("CT", "MR")


@dataclass(frozen=True)
class SeriesIdentity:
    """Whose series it is and in which frame: patient data, to be compared and never logged."""

    patient: str
    study: str
    series: str
    frame_of_reference: str
    modality: str


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series read whole.

    Args:
        volume: CT in HU, MR in scanner units, float32; axes (column, row, slice), sorted along the slice normal.
        identity: see there.
        headers: one data set an object, without pixels, in the order of the slices.
    """

    volume: Volume
    identity: SeriesIdentity
    headers: tuple[Dataset, ...]


def read_series(
    source: Path | str,
    *,
    name: str | None = None,
    report: list[str] | None = None,
    series: int | None = None,
    drop_localizers: bool = False,
    resample_tilt: bool = False,
) -> Volume:
    """The volume of `load_series`."""
    return load_series(
        source, name=name, report=report, series=series, drop_localizers=drop_localizers, resample_tilt=resample_tilt
    ).volume


def load_series(
    source: Path | str,
    *,
    name: str | None = None,
    report: list[str] | None = None,
    series: int | None = None,
    drop_localizers: bool = False,
    resample_tilt: bool = False,
) -> DicomSeries:
    """Read a DICOM series after walking every byte of it.

    Args:
        source: a folder, a zip, or one multi-frame file.
        name: what to call it in messages; the source's base name by default. Names of files inside are never told.
        report: warnings about the data are appended here.
        series: which of several series, by the number that `list_series` gives it; without one, several are refused.
        drop_localizers: leave localizer images out instead of refusing the series.
        resample_tilt: put a scan with a tilted gantry onto a grid with right angles instead of refusing it.

    Raises:
        UsageError: `no_such_file`, `no_such_series`.
        BadInputError: those of `check_bytes` and `read_members`; `no_images`, `unsupported_modality`,
            `mixed_patients`, `mixed_series`, `mixed_frames`, `mixed_geometry`, `duplicate_instance` (409),
            `burned_in_annotation`, `localizer`, `missing_geometry`, `too_few_slices`, `duplicate_position`,
            `missing_slice`, `uneven_slices`, `gantry_tilt`, `unsupported_voxels`, `pixel_size_mismatch`,
            `bad_pixels`, `nonfinite_voxels`, `implausible_grid`, `too_large` (413).
    """
    source = Path(source)
    name = source.name if name is None else name
    warnings = [] if report is None else report
    with pydicom_config.disable_value_validation():
        headers = _images(source, name, warnings, series)
        identity = _identity(headers, name)
        planes = sorted_planes(headers, name, warnings, drop_localizers)
        sheared = grid_of(planes, name, allow_tilt=resample_tilt)
        data = _voxels(planes, sheared.shape, name)
        kept = _without_pixels(planes)
    volume = Volume(data, sheared)
    if tilt_of(planes) > MAX_SHEAR:
        volume = resample(volume, upright(sheared))
        warnings.append(f"{name}: the gantry was tilted; resampled onto a grid with right angles")
    check_grid(volume.geometry.affine, volume.geometry.shape, name)
    return DicomSeries(volume, identity, kept)


def series_identity(source: Path | str, *, name: str | None = None) -> SeriesIdentity:
    """Whose series a folder, zip or file holds, through the same guarded door; the pixels are not decoded.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: as `load_series`, as far as headers go.
    """
    source = Path(source)
    name = source.name if name is None else name
    with pydicom_config.disable_value_validation():
        return _identity(_images(source, name, [], None), name)


def _images(source: Path, name: str, warnings: list[str], series: int | None) -> list[Dataset]:
    """The image objects of one series, each once; what accompanies images is left out with a warning."""
    images: dict[str, tuple[bytes, Dataset]] = {}
    skipped: list[int] = []
    duplicates = total = 0
    wanted = None if series is None else chosen_series(source, name, series)
    for dataset, content in image_objects(source, name, skipped):
        if wanted is None:
            wanted = series_of(dataset)
        elif series is None and series_of(dataset) != wanted:
            raise several_series(source, name)
        elif series_of(dataset) != wanted:
            continue
        total += len(content)
        if total > MAX_VOXEL_BYTES:
            raise BadInputError(f"{name}: more than {MAX_VOXEL_BYTES >> 20} MiB", code="too_large", status=413)
        digest = hashlib.sha256(content).digest()
        uid = str(dataset.get("SOPInstanceUID") or dataset.file_meta.get("MediaStorageSOPInstanceUID") or digest.hex())
        if uid in images and images[uid][0] != digest:
            message = f"{name}: two different images carry one SOP Instance UID; export the series again"
            raise BadInputError(message, code="duplicate_instance", status=409)
        duplicates += uid in images
        images[uid] = (digest, dataset)
    if not images:
        status = 415 if source.is_file() else 422
        raise BadInputError(f"{name}: no CT or MR image in it; send one DICOM series", code="no_images", status=status)
    if duplicates:
        warnings.append(f"{name}: {duplicates} images came twice; each is used once")
    if skipped:
        warnings.append(f"{name}: {len(skipped)} files that are no images were left out")
    return [dataset for _, dataset in images.values()]


def _identity(headers: list[Dataset], name: str) -> SeriesIdentity:
    """What all images of one series have in common, or which of it they have not."""

    def common(keywords: tuple[str, ...], what: str, *, code: str) -> str:
        values = {"\\".join(str(header.get(keyword, "")).strip() for keyword in keywords) for header in headers}
        if len(values) > 1:
            raise BadInputError(f"{name}: images of {len(values)} {what}; send one series of one patient", code=code)
        return values.pop()

    common(("PatientID", "PatientName"), "patients", code="mixed_patients")
    modality = common(("Modality",), "modalities", code="mixed_series")
    if modality not in MODALITIES:
        raise BadInputError(f"{name}: neither CT nor MR; send one of them", code="unsupported_modality")
    for header in headers:
        if str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
            message = f"{name}: text is burned into the image and may name the patient; export it without"
            raise BadInputError(message, code="burned_in_annotation")
    return SeriesIdentity(
        patient=common(("PatientID",), "patients", code="mixed_patients"),
        study=common(("StudyInstanceUID",), "studies", code="mixed_series"),
        series=common(("SeriesInstanceUID",), "series", code="mixed_series"),
        frame_of_reference=common(("FrameOfReferenceUID",), "frames of reference", code="mixed_frames"),
        modality=modality,
    )


def _voxels(planes: list[Plane], shape: tuple[int, int, int], name: str) -> NDArray[np.float32]:
    """Physical values, (columns, rows, slices)."""
    if 4 * int(np.prod(shape, dtype=np.int64)) > MAX_VOXEL_BYTES:
        raise BadInputError(f"{name}: {shape} voxels are past the limit; crop it", code="too_large", status=413)
    data = np.empty(shape, np.float32)
    places: dict[int, list[int]] = {}
    for k, plane in enumerate(planes):
        places.setdefault(id(plane.header), []).append(k)
    headers = [planes[first].header for first, *_ in places.values()]
    for frames, ks in zip(read_pixels(headers, name), places.values(), strict=True):
        for k in ks:
            stored = frames[planes[k].frame].T.astype(np.float32)
            data[:, :, k] = stored * np.float32(planes[k].slope) + np.float32(planes[k].intercept)
    if not np.isfinite(data).all():
        raise BadInputError(f"{name}: voxels that are NaN or infinite after rescaling", code="nonfinite_voxels")
    return data


def _without_pixels(planes: list[Plane]) -> tuple[Dataset, ...]:
    headers = list({id(plane.header): plane.header for plane in planes}.values())
    for header in headers:
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if keyword in header:
                delattr(header, keyword)
    return tuple(headers)
