"""Real images into a cohort: read, checked, de-identified and resampled to its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from hepalign.cases.case import ROLES, Split
from hepalign.cases.deidentify import check_pseudonyms
from hepalign.cases.labels import check_overlap
from hepalign.cases.landmarks import Landmarks, parse_landmarks
from hepalign.cases.placing import placed_grid
from hepalign.cases.probe import check_probe_mask, parse_probe_mask, voxel_mask
from hepalign.cases.sources.locations import local_copy
from hepalign.cases.sources.scans import SHAPE, ImportSettings, Scan, read_drawn, read_label, read_scan
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti_header import Orientation
from hepalign.image.resample import resample
from hepalign.image.resample_labels import resample_labels
from hepalign.image.volume import Volume

# An abdomen's length: a longer scan does not make the grid coarser, it is cut.
LONGEST_MM = 280.0
MARGIN_MM = 10.0
LARGEST_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class Imported:
    """What became of a case: its id and what its reader should know."""

    case_id: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CaseFiles:
    """Where the files of one case lie; each a path or an s3:// place.

    Args:
        images: by role: NIfTI, DICOM folder or DICOM zip.
        labels: `{role}_liver` and `{role}_tumour`: NIfTI, or a DICOM segmentation (SEG).
        landmarks: by role: CSV (name, x, y, z; mm, RAS).
        probe_mask: on the iCT: NIfTI, a DICOM segmentation (SEG), or JSON (box, polygon).
    """

    images: Mapping[str, Path | str]
    labels: Mapping[str, Path | str] = field(default_factory=dict)
    landmarks: Mapping[str, Path | str] = field(default_factory=dict)
    probe_mask: Path | str | None = None


def import_case(
    out: Path | str,
    case_id: str,
    *,
    images: Mapping[str, Path | str],
    patient: str | None = None,
    probe_mask: Path | str | None = None,
    labels: Mapping[str, Path | str] | None = None,
    landmarks: Mapping[str, Path | str] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: float | None = None,
    orientation: Orientation = "auto",
    drop_localizers: bool = False,
    resample_tilt: bool = False,
    n4: bool = False,
    series: Mapping[str, int] | None = None,
    split: Split | None = None,
) -> Imported:
    """Import one case into a cohort, which is made where it is missing, and write its manifest.

    Every image is resampled to an isotropic, axis-aligned grid of `shape`, placed on its liver or body; images keep
    their places in the world, so a common frame stays common.

    Args:
        out: the cohort's folder or s3:// prefix.
        case_id: a pseudonym.
        images: see `CaseFiles`, as the next three.
        patient: a pseudonym, the same for every case of the patient; the case's id by default.
        probe_mask: …
        labels: …
        landmarks: …
        shape: voxels of the grid.
        spacing_mm: its spacing; by default the finest at which the largest body fits.
        orientation: which of a NIfTI header's two forms counts where they differ.
        drop_localizers: leave localizers in a DICOM series out instead of refusing it.
        resample_tilt: straighten a scan with a tilted gantry instead of refusing it.
        n4: take the coil's shading out of the pMR; it is kept as `pmr_bias` (corrected times bias is the scan).
        series: by role, which of several DICOM series, by the number that the refusal lists.
        split: the patient's split; by default the cohort's shares decide.

    Raises:
        UsageError: `case_exists`, `no_images`, `unknown_role`, `no_such_file`, `no_such_series`.
        BadInputError: those of `read_nifti`, `load_series`, `read_segmentation`, `check_ct`, `check_mr`, `label_onto`,
            `parse_probe_mask`, `check_probe_mask`, `parse_landmarks`; `patient_mismatch` (fault 48), `no_overlap`
            (fault 42), `identifying_id`, `bad_case_id`.
    """
    writer = CohortWriter(out)
    if writer.has(case_id):
        raise UsageError(f"case {case_id} is in the cohort already; choose another id", code="case_exists")
    files = CaseFiles(images, labels or {}, landmarks or {}, probe_mask)
    settings = ImportSettings(shape, spacing_mm, orientation, drop_localizers, resample_tilt, n4, series or {})
    warnings = add_case(writer, case_id, files, settings=settings, patient=patient, split=split)
    writer.finish()
    return Imported(case_id, tuple(warnings))


def add_case(
    writer: CohortWriter,
    case_id: str,
    files: CaseFiles,
    *,
    settings: ImportSettings,
    patient: str | None = None,
    split: Split | None = None,
    attributes: Mapping[str, str] | None = None,
) -> list[str]:
    """Read, check and add one case without finishing the cohort; the warnings.

    Args:
        writer: of the cohort.
        case_id: a pseudonym.
        files: where everything lies.
        settings: how it is read.
        patient: as `import_case`, and so are the errors.
        split: as `import_case`.
        attributes: further facts of the case; nothing that tells who it is.
    """
    _check_words(files)
    report: list[str] = []
    scans = {role: read_scan(role, files.images[role], settings, report) for role in ROLES if role in files.images}
    _check_identities(scans, (case_id, patient or case_id))
    if "pct" in scans and "ict" in scans:
        check_overlap(scans["pct"].volume.geometry, scans["ict"].volume.geometry)
    labels = {name: read_label(name, place, scans[name[:3]], report) for name, place in files.labels.items()}
    report += [f"{role}: no liver mask" for role in scans if f"{role}_liver" not in labels]
    points = {role: _read_points(role, place, scans[role], report) for role, place in files.landmarks.items()}
    bodies = {role: scan.body() for role, scan in scans.items()}
    if files.probe_mask is not None:
        labels["ict_probe_mask"] = _read_probe(files.probe_mask, scans["ict"], report)
    shape = settings.shape
    spacing = settings.spacing_mm or fitting_spacing_mm([_body_extent_mm(body) for body in bodies.values()], shape)
    volumes: dict[str, Volume] = {}
    for role, scan in scans.items():
        geometry = scan.volume.geometry
        grid = placed_grid(geometry, shape, spacing, body=bodies[role], liver=labels.get(f"{role}_liver"))
        volumes[role] = resample(_smoothed(scan.volume, spacing), grid, fill=scan.fill)
        if scan.bias is not None:
            volumes["pmr_bias"] = resample(scan.bias, grid, fill=1.0)
        mine = {name: label for name, label in labels.items() if name.startswith(role)}
        for name, label in mine.items():
            # a coarse mask may grow, never shrink; structures keep their shape
            probe = name == "ict_probe_mask"
            volumes[name] = resample(label, grid, mode="nearest", fill=0) if probe else resample_labels(label, grid)
            if not volumes[name].data.any():
                raise BadInputError(
                    f"{name}: nothing of it is left on the cohort's grid; use a larger --shape or a finer --spacing",
                    code="empty_label",
                )
    writer.add(
        case_id,
        patient or case_id,
        volumes=volumes,
        landmarks=points,
        attributes={
            "source": "import",
            "acquisition": {role: scan.acquisition for role, scan in scans.items()},
            "scanned_mm": {role: _box_mm(scan.volume.geometry) for role, scan in scans.items()},
            "scan_spacing_mm": {role: list(scan.volume.geometry.spacing_mm) for role, scan in scans.items()},
            **(attributes or {}),
        },
        split=split,
    )
    return report


def fitting_spacing_mm(extents_mm: list[NDArray[np.float64]], shape: tuple[int, int, int]) -> float:
    """The finest isotropic spacing, to a tenth of a millimetre, at which bodies of these extents (3,) fit a grid."""
    needed = [np.minimum(extent + 2 * MARGIN_MM, (np.inf, np.inf, LONGEST_MM)) / shape for extent in extents_mm]
    return float(np.ceil(10 * max(float(need.max()) for need in needed) - 1e-6) / 10)


def _check_words(files: CaseFiles) -> None:
    if not files.images:
        raise UsageError("a case needs at least one image: pmr, pct or ict", code="no_images")
    named = {*files.images, *files.landmarks, *(name[:3] for name in files.labels)}
    known = {f"{role}_{structure}" for role in ROLES for structure in ("liver", "tumour")} | {"ict_ablation"}
    if not named <= set(ROLES) or not set(files.labels) <= known:
        raise UsageError("images are pmr, pct and ict; labels are their liver and tumour", code="unknown_role")
    lonely = (named | ({"ict"} if files.probe_mask is not None else set())) - set(files.images)
    if lonely:
        raise UsageError(f"{', '.join(sorted(lonely))}: came with labels or points, but no image", code="no_images")


def _check_identities(scans: Mapping[str, Scan], ids: tuple[str, str]) -> None:
    """Every DICOM series must be of one patient (fault 48), and no id may tell who it is."""
    patients = {scan.identity.patient for scan in scans.values() if scan.identity is not None}
    if len(patients) > 1:
        roles = ", ".join(role for role, scan in scans.items() if scan.identity is not None)
        message = f"{roles}: the images are of {len(patients)} patients (PatientID differs); send those of one patient"
        raise BadInputError(message, code="patient_mismatch")
    for scan in scans.values():
        if scan.header is not None:
            check_pseudonyms(ids, scan.header)


def _read_points(role: str, place: Path | str, scan: Scan, report: list[str]) -> Landmarks:
    name = f"{role}_landmarks"
    points = parse_landmarks(_text(place, name), name=name)
    outside = int((~scan.volume.geometry.contains(points.points_mm)).sum())
    if outside:
        report.append(f"{name}: {outside} of {len(points)} points lie outside the image (are they RAS millimetres?)")
    return points


def _read_probe(place: Path | str, scan: Scan, report: list[str]) -> Volume:
    name, ict = "ict_probe_mask", scan.volume
    if str(place).lower().endswith(".json"):
        mask = parse_probe_mask(_text(place, name), ict.geometry, name=name)
    else:
        with local_copy(place, name=name) as path:
            mask = voxel_mask(read_drawn(path, name, scan, "probe"), ict.geometry, report, name=name)
    check_probe_mask(mask, ict, name=name)
    return mask.with_data(mask.as_mask().astype(np.uint8))


def _text(place: Path | str, name: str) -> str:
    with local_copy(place, name=name) as path:
        if not path.is_file() or path.stat().st_size > LARGEST_TEXT_BYTES:
            raise BadInputError(f"{name}: is no text file of this kind", code="bad_text")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInputError(f"{name}: is no UTF-8 text", code="bad_text") from error


def _smoothed(volume: Volume, spacing_mm: float) -> Volume:
    """The image blurred along axes that become coarser, so that fine noise and edges do not alias."""
    ratio = spacing_mm / np.asarray(volume.geometry.spacing_mm)
    # full width at half maximum of the new voxel less that of the old one
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / 2.355
    if sigma.max() < 0.2:
        return volume
    return volume.with_data(scipy.ndimage.gaussian_filter(volume.as_float(), sigma, mode="nearest", truncate=3))


def _body_extent_mm(body: Volume) -> NDArray[np.float64]:
    """Edges of the world box of a mask; of the whole image where the mask is empty."""
    inside = np.argwhere(body.as_mask()[::2, ::2, ::2]) * 2
    if not len(inside):
        corners = body.geometry.corners_mm()
    else:
        low, high = inside.min(axis=0), inside.max(axis=0)
        corners = body.geometry.index_to_world(np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T)
    extent: NDArray[np.float64] = corners.max(axis=0) - corners.min(axis=0)
    return extent


def _box_mm(geometry: Geometry) -> list[list[float]]:
    corners = geometry.corners_mm()
    return [[round(float(x), 2) for x in end] for end in (corners.min(axis=0), corners.max(axis=0))]
