"""One CT or MR series, single-frame or multi-frame, from a folder, a zip or a file, as a volume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError, UsageError
from hepalign.image import archive
from hepalign.image.dicom_bytes import check_bytes, is_dicom
from hepalign.image.dicom_pixels import read_pixels
from hepalign.image.geometry import Geometry
from hepalign.image.nifti_header import MAX_SHEAR, MAX_VOXEL_BYTES, check_grid
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

MODALITIES = ("CT", "MR")
# Objects that travel with images and hold none: directory, reports, structures, segmentations, presentation states.
_COMPANIONS = ("", "SR", "KO", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "AU")
_USED = (
    "SOPInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "PatientID", "PatientName", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "BurnedInAnnotation", "ImageType", "PixelData",
)  # fmt: skip
_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Scanners round positions to a tenth of a millimetre; a missing slice is a whole spacing.
POSITION_TOLERANCE_MM = 0.15
# Orientations that differ by more than this (in their cosines) are two scans.
ORIENTATION_TOLERANCE = 1e-3


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


@dataclass(frozen=True, eq=False)
class _Plane:
    """One slice: its (rows, columns), where it lies, how stored values become physical ones. Vectors in LPS mm."""

    header: Dataset
    frame: int
    shape: tuple[int, int]
    position: NDArray[np.float64]
    cosines: NDArray[np.float64]
    spacing: NDArray[np.float64]
    slope: float
    intercept: float
    localizer: bool

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.cosines[:3], self.cosines[3:])

    @property
    def height(self) -> float:
        return float(self.position @ self.normal)


def read_series(
    source: Path | str,
    *,
    name: str | None = None,
    report: list[str] | None = None,
    drop_localizers: bool = False,
    resample_tilt: bool = False,
) -> Volume:
    """The volume of `load_series`."""
    return load_series(
        source, name=name, report=report, drop_localizers=drop_localizers, resample_tilt=resample_tilt
    ).volume


def load_series(
    source: Path | str,
    *,
    name: str | None = None,
    report: list[str] | None = None,
    drop_localizers: bool = False,
    resample_tilt: bool = False,
) -> DicomSeries:
    """Read a DICOM series after walking every byte of it.

    Args:
        source: a folder, a zip, or one multi-frame file.
        name: what to call it in messages; the source's base name by default. Names of files inside are never told.
        report: warnings about the data are appended here.
        drop_localizers: leave localizer images out instead of refusing the series.
        resample_tilt: put a scan with a tilted gantry onto a grid with right angles instead of refusing it.

    Raises:
        UsageError: `no_such_file`.
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
        headers = _images(source, name, warnings)
        identity = _identity(headers, name)
        planes = _sorted_planes(headers, name, warnings, drop_localizers)
        sheared = Geometry(*_grid(planes, name, allow_tilt=resample_tilt))
        data = _voxels(planes, sheared.shape, name)
        kept = _without_pixels(planes)
    volume = Volume(data, sheared)
    if _tilt(planes) > MAX_SHEAR:
        volume = resample(volume, _upright(sheared))
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
        return _identity(_images(source, name, []), name)


def _images(source: Path, name: str, warnings: list[str]) -> list[Dataset]:
    """The image objects of a source, each once; what accompanies images is left out with a warning."""
    images: dict[str, tuple[bytes, Dataset]] = {}
    skipped = duplicates = total = 0
    for number, content in enumerate(_contents(source, name), start=1):
        if not is_dicom(content[:132]):
            skipped += 1
            continue
        dataset = _parse(content, f"{name} (file {number})")
        if str(dataset.get("Modality", "")) in _COMPANIONS or "Rows" not in dataset:
            skipped += 1
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
        warnings.append(f"{name}: {skipped} files that are no images were left out")
    return [dataset for _, dataset in images.values()]


def _contents(source: Path, name: str) -> Iterator[bytes]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                if path.stat().st_size > MAX_VOXEL_BYTES:
                    raise BadInputError(
                        f"{name}: a file past {MAX_VOXEL_BYTES >> 20} MiB", code="too_large", status=413
                    )
                yield path.read_bytes()
    elif not source.is_file():
        raise UsageError(f"{name}: there is no such file or folder", code="no_such_file")
    elif archive.is_zip(source):
        yield from archive.read_members(source, name)
    elif source.stat().st_size > MAX_VOXEL_BYTES:
        raise BadInputError(f"{name}: more than {MAX_VOXEL_BYTES >> 20} MiB", code="too_large", status=413)
    else:
        yield source.read_bytes()


def _parse(content: bytes, name: str) -> Dataset:
    check_bytes(content, name)
    try:
        dataset = pydicom.dcmread(BytesIO(content))
        # pydicom converts a value when it is first asked for: ask here.
        for keyword in _USED:
            dataset.get(keyword)
    except Exception:  # noqa: BLE001  pydicom raises whatever the bytes led it to, and may quote them: no cause is kept
        raise BadInputError(f"{name}: a DICOM file that cannot be parsed", code="bad_dicom") from None
    return dataset


def _identity(headers: list[Dataset], name: str) -> SeriesIdentity:
    """What all images of one series have in common, or which of it they have not."""

    def common(keywords: tuple[str, ...], what: str, code: str) -> str:
        values = {"\\".join(str(header.get(keyword, "")).strip() for keyword in keywords) for header in headers}
        if len(values) > 1:
            raise BadInputError(f"{name}: images of {len(values)} {what}; send one series of one patient", code=code)
        return values.pop()

    common(("PatientID", "PatientName"), "patients", "mixed_patients")
    modality = common(("Modality",), "modalities", "mixed_series")
    if modality not in MODALITIES:
        raise BadInputError(f"{name}: neither CT nor MR; send one of them", code="unsupported_modality")
    for header in headers:
        if str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
            message = f"{name}: text is burned into the image and may name the patient; export it without"
            raise BadInputError(message, code="burned_in_annotation")
    return SeriesIdentity(
        patient=common(("PatientID",), "patients", "mixed_patients"),
        study=common(("StudyInstanceUID",), "studies", "mixed_series"),
        series=common(("SeriesInstanceUID",), "series", "mixed_series"),
        frame_of_reference=common(("FrameOfReferenceUID",), "frames of reference", "mixed_frames"),
        modality=modality,
    )


def _sorted_planes(headers: list[Dataset], name: str, warnings: list[str], drop_localizers: bool) -> list[_Plane]:
    planes = [plane for header in headers for plane in _planes(header, name)]
    localizers = sum(plane.localizer for plane in planes)
    if localizers and not drop_localizers:
        message = f"{name}: {localizers} of {len(planes)} images are localizers; leave them out of the export"
        raise BadInputError(message, code="localizer")
    if localizers:
        planes = [plane for plane in planes if not plane.localizer]
        warnings.append(f"{name}: {localizers} localizer images were left out")
    if len(planes) < 2:
        raise BadInputError(f"{name}: {len(planes)} slice is no volume; send the whole series", code="too_few_slices")
    first = planes[0]
    for plane in planes:
        alike = np.allclose(plane.spacing, first.spacing, rtol=1e-3)
        if plane.shape != first.shape or not alike:
            raise BadInputError(f"{name}: slices of different size or spacing; send one series", code="mixed_geometry")
        if np.abs(plane.cosines - first.cosines).max() > ORIENTATION_TOLERANCE:
            raise BadInputError(f"{name}: slices of different orientation; send one series", code="mixed_geometry")
    return sorted(planes, key=lambda plane: float(plane.position @ first.normal))


def _planes(header: Dataset, name: str) -> Iterator[_Plane]:
    """The slices of one object; multi-frame attributes from the frame, else from what all frames share."""
    try:
        frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
        if len(frames) != int(header.get("NumberOfFrames") or 1):
            raise ValueError("every frame needs its place")
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for number, own in enumerate(frames):
            groups = (own, shared, header)
            rescale = _group(groups, "PixelValueTransformationSequence")
            orientation = _group(groups, "PlaneOrientationSequence")
            kind = header.get("ImageType") or []
            plane = _Plane(
                header, number, (int(header.Rows), int(header.Columns)),
                _numbers(_group(groups, "PlanePositionSequence").ImagePositionPatient, 3),
                _numbers(orientation.ImageOrientationPatient, 6),
                _numbers(_group(groups, "PixelMeasuresSequence").PixelSpacing, 2),
                float(rescale.get("RescaleSlope", 1.0)), float(rescale.get("RescaleIntercept", 0.0)),
                any("LOCALIZER" in str(word).upper() for word in ([kind] if isinstance(kind, str) else kind)),
            )  # fmt: skip
            _check_plane(plane)
            yield plane
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError):
        message = f"{name}: an image without a usable position, orientation or spacing; export it as CT or MR"
        raise BadInputError(message, code="missing_geometry") from None


def _group(groups: tuple[Dataset, Dataset, Dataset], sequence: str) -> Dataset:
    """The item of a functional group: the frame's own, else the shared one, else (single-frame) the object itself."""
    own, shared, header = groups
    for group in (own, shared):
        if items := group.get(sequence):
            item: Dataset = items[0]
            return item
    return header


def _numbers(values: object, count: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{count} finite numbers are needed")
    return numbers


def _check_plane(plane: _Plane) -> None:
    across, down = plane.cosines[:3], plane.cosines[3:]
    skew = max(abs(across @ down), abs(across @ across - 1), abs(down @ down - 1))
    if (
        skew > ORIENTATION_TOLERANCE * 10
        or min(plane.shape) < 1
        or plane.spacing.min() <= 0
        or not np.isfinite([plane.slope, plane.intercept]).all()
    ):
        raise ValueError("a slice has pixels, an orthonormal orientation, positive spacing and a finite rescale")


def _grid(planes: list[_Plane], name: str, *, allow_tilt: bool) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (columns, rows, slices) and RAS affine, sheared where the gantry was tilted, of evenly spaced planes."""
    first, count = planes[0], len(planes)
    heights = np.array([plane.position @ first.normal for plane in planes])
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() < POSITION_TOLERANCE_MM / 10:
        at = int(gaps.argmin()) + 1
        message = (
            f"{name}: slices {at} and {at + 1} of {count} lie at one position (phases or echoes?); send one volume"
        )
        raise BadInputError(message, code="duplicate_position")
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > max(POSITION_TOLERANCE_MM, 0.02 * usual):
        missing = round(gaps[worst] / usual) - 1
        where = f"between slices {worst + 1} and {worst + 2} of {count} lie {gaps[worst]:.2f} mm instead of {usual:.2f}"
        if missing > 0:
            message = f"{name}: {missing} slices are missing: {where}; send the whole series"
            raise BadInputError(message, code="missing_slice")
        raise BadInputError(f"{name}: slices are not evenly spaced: {where}", code="uneven_slices")
    step = (planes[-1].position - first.position) / (count - 1)
    straight = first.position + np.arange(count)[:, None] * step
    if np.abs(np.array([plane.position for plane in planes]) - straight).max() > 2 * POSITION_TOLERANCE_MM:
        raise BadInputError(f"{name}: slices do not lie on one line; send one acquisition", code="uneven_slices")
    tilt = _tilt(planes)
    if tilt > MAX_SHEAR and not allow_tilt:
        message = (
            f"{name}: the gantry was tilted by {np.degrees(np.arcsin(min(tilt, 1.0))):.1f}°; ask for it to be resampled"
        )
        raise BadInputError(message, code="gantry_tilt")
    affine = np.eye(4)
    affine[:3, 0] = first.cosines[:3] * first.spacing[1]
    affine[:3, 1] = first.cosines[3:] * first.spacing[0]
    affine[:3, 2] = step if tilt > MAX_SHEAR else first.normal * (heights[-1] - heights[0]) / (count - 1)
    affine[:3, 3] = first.position
    return (first.shape[1], first.shape[0], count), _RAS_LPS @ affine


def _tilt(planes: list[_Plane]) -> float:
    """The sine of the angle between the line of the slices and their normal."""
    along = planes[-1].position - planes[0].position
    normal = planes[0].normal
    return float(np.linalg.norm(along - (along @ normal) * normal) / np.linalg.norm(along))


def _upright(sheared: Geometry) -> Geometry:
    """The grid with right angles, of the same in-plane axes, that holds every voxel of a sheared one."""
    affine, shape = sheared.affine.copy(), np.asarray(sheared.shape)
    in_plane = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    drift = affine[:3, 2] - in_plane @ (in_plane.T @ affine[:3, 2])
    affine[:3, 2] = drift
    corners = Geometry(sheared.shape, affine).world_to_index(sheared.corners_mm())
    low, high = np.floor(corners.min(axis=0) + 1e-6), np.ceil(corners.max(axis=0) - 1e-6)
    shape = (high - low).astype(int) + 1
    affine[:3, 3] += affine[:3, :3] @ low
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _voxels(planes: list[_Plane], shape: tuple[int, int, int], name: str) -> NDArray[np.float32]:
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


def _without_pixels(planes: list[_Plane]) -> tuple[Dataset, ...]:
    headers = list({id(plane.header): plane.header for plane in planes}.values())
    for header in headers:
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if keyword in header:
                delattr(header, keyword)
    return tuple(headers)
