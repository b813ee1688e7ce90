"""Everything that is wrong with a cohort, in one list."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hepalign.cases.case import ROLES, Case
from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.labels import check_overlap, label_onto
from hepalign.cases.landmarks import Landmarks, common
from hepalign.cases.manifest import MANIFEST_NAME
from hepalign.cases.probe import check_probe_mask
from hepalign.cases.writer import CT_NAMES, RECORD_NAME
from hepalign.errors import BadInputError
from hepalign.image.checks import check_ct, check_mr
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField, transform_points

# Landmarks are read off voxels: the truth may differ from them by this much and still be the truth.
LANDMARK_TOLERANCE_MM = 5.0


# Of the files beside an image the only one that is no mask.
BIAS_NAME = "pmr_bias"


@dataclass(frozen=True)
class Finding:
    """One fault: the case, the file (both may be empty: the cohort as a whole), a stable code and the mend."""

    case: str
    file: str
    code: str
    message: str


def check_cohort(location: Path | str) -> list[Finding]:
    """Read every file of every case and list what is wrong; an empty list is a sound cohort.

    Checked: the manifest and its digests, every header and voxel, modalities, labels on their images' grids, the
    probe mask, pCT and iCT in one region, truth fields against landmarks, one image under two patients, files that
    the manifest does not know. Objects under s3:// are read anew: a copy in the cache says nothing of them.

    Raises:
        UsageError, WorkFailedError: those of `s3.named_errors`; a store that does not answer is no fault of the cohort.
    """
    with tempfile.TemporaryDirectory() as fresh:
        try:
            cohort = open_cohort(location, cache=Path(fresh))
        except BadInputError as error:
            return [Finding("", MANIFEST_NAME, error.code, error.message)]
        findings: list[Finding] = []
        for case in cohort.cases():
            findings += _CaseCheck(cohort, case).findings()
            # one case's copies at a time: a cohort may be larger than the disk
            shutil.rmtree(Path(fresh) / "objects", ignore_errors=True)
        return [*findings, *_shared_images(cohort), *_unlisted(cohort)]


class _CaseCheck:
    def __init__(self, cohort: Cohort, case: Case) -> None:
        self._cohort, self._case = cohort, case
        self._found: list[Finding] = []
        self._volumes: dict[str, Volume] = {}
        self._fields: dict[str, DisplacementField] = {}
        self._points: dict[str, Landmarks] = {}

    def findings(self) -> list[Finding]:
        for name in self._case.files:
            self._try(name, partial(self._read, name))
        for name, volume in self._volumes.items():
            self._try(name, partial(self._check, name, volume))
        if {"pct", "ict"} <= set(self._volumes):
            self._try("ict", lambda: check_overlap(self._volumes["pct"].geometry, self._volumes["ict"].geometry))
        for name in self._fields:
            self._try(name, partial(self._check_truth, name))
        return self._found

    def _try(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except BadInputError as error:
            self._found.append(Finding(self._case.id, name, error.code, error.message))

    def _read(self, name: str) -> None:
        if name.endswith("_landmarks"):
            self._points[name[:3]] = self._cohort.landmarks(self._case, name[:3])
        elif name.startswith("truth_field_"):
            self._fields[name] = self._cohort.field(self._case, name)
        else:
            self._volumes[name] = self._cohort.volume(self._case, name)

    def _check(self, name: str, volume: Volume) -> None:
        if name in CT_NAMES:
            check_ct(volume, name)
        elif name == "pmr":
            check_mr(volume, name)
        elif name != BIAS_NAME and name[:3] in self._volumes:
            image = self._volumes[name[:3]]
            report: list[str] = []
            label = label_onto(volume, image, name=name, report=report)
            if report:
                raise BadInputError(f"{name}: is not on its image's grid; import the case again", code="other_grid")
            if name == "ict_probe_mask":
                check_probe_mask(label, image, name=name)

    def _check_truth(self, name: str) -> None:
        """A truth field must bring a's landmarks to b's."""
        fixed, _, moving = name.removeprefix("truth_field_").partition("_from_")
        if not {fixed, moving} <= set(self._points):
            return
        _, at, there = common(self._points[fixed], self._points[moving])
        if len(at):
            gap_mm = np.linalg.norm(transform_points(self._fields[name], at) - there, axis=1)
            if float(np.median(gap_mm)) > LANDMARK_TOLERANCE_MM:
                raise BadInputError(
                    f"{name}: leaves the landmarks {np.median(gap_mm):.1f} mm apart; it is not the truth of this pair",
                    code="truth_mismatch",
                )


def _shared_images(cohort: Cohort) -> Iterator[Finding]:
    """One image under two patients leaks from one split into another."""
    owners: dict[str, tuple[str, str]] = {}
    for entry in cohort.manifest.cases:
        for role in ROLES:
            if role not in entry.files:
                continue
            patient, case = owners.setdefault(entry.files[role].sha256, (entry.patient, entry.id))
            if patient != entry.patient:
                message = f"{role}: the same image as in case {case} of another patient; give both one patient id"
                yield Finding(entry.id, role, "shared_image", message)


def _unlisted(cohort: Cohort) -> Iterator[Finding]:
    """What lies beside the manifest's files: cases of a command that broke off, and strangers."""
    known = {file.path for entry in cohort.manifest.cases for file in entry.files.values()}
    folders: dict[str, list[str]] = {}
    for key in cohort.stored():
        folders.setdefault(key.split("/")[1], []).append(key)
    for folder, keys in folders.items():
        if folder.startswith(".") or f"cases/{folder}/{RECORD_NAME}" in keys:
            message = "written but not in the manifest yet; finish the command that writes the cohort"
            yield Finding(folder, "", "unfinished_case", message)
            continue
        for key in keys:
            if key not in known:
                message = "not in the manifest; remove it or import it as a case"
                yield Finding(folder, key.rpartition("/")[2], "unlisted_file", message)
