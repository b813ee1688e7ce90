"""Writing a cohort, case by case, so that what was finished stays finished."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import BaseModel, JsonValue

from hepalign.cases import s3
from hepalign.cases.case import Split
from hepalign.cases.cohort import open_cohort
from hepalign.cases.landmarks import Landmarks, write_landmarks
from hepalign.cases.manifest import (
    IDENTIFIER,
    MANIFEST_NAME,
    CaseEntry,
    FileEntry,
    Identifier,
    Manifest,
    file_name,
    parse_manifest,
    sha256_of,
)
from hepalign.cases.prepared import cache_folder
from hepalign.cases.splits import PAPER_SHARES, assign_splits
from hepalign.cases.store import atomic_path
from hepalign.errors import BadInputError, UsageError, WorkFailedError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import write_field

RECORD_NAME = "case.json"
CT_NAMES = frozenset({"pct", "ict", "ict_clean", "pmr_true_ct"})
MASK_NAME = re.compile(r"_(liver|probe_mask|ablation)$")
# Files sent side by side.
UPLOADS = 4
LABEL_NAME = re.compile(r"_tumour$")


class _Record(BaseModel):
    """A finished case that waits for the manifest; `split` is None where `finish` may choose."""

    id: Identifier
    patient: Identifier
    split: Split | None
    files: dict[str, FileEntry]
    attributes: dict[str, JsonValue]


class CohortWriter:
    """Adds cases to a cohort's folder; `finish` writes the manifest.

    A case appears whole (its folder is renamed into place with a record of its digests in it) or not at all, and
    several processes may add different cases to one folder; one at a time finishes it. An existing cohort is extended:
    its cases and the splits of its patients stay.

    Args:
        out: the cohort's folder (it is made where it is missing) or an s3:// prefix. For a prefix the cases are
            gathered in the cache and sent by `finish`, the manifest last; sending goes on where it broke off.

    Raises:
        UsageError: `out_unusable` where no folder can be made.
    """

    def __init__(self, out: Path | str) -> None:
        self._place = out
        self._url = s3.S3Url.parse(str(out)) if str(out).startswith(s3.SCHEME) else None
        self.root = Path(out) if self._url is None else _staging(self._url)
        try:
            (self.root / "cases").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{self.root.name}: no cohort can be written here; choose a folder that is or can be made"
            raise UsageError(message, code="out_unusable") from error

    def has(self, case_id: str) -> bool:
        """Whether this case was finished before.

        Raises:
            BadInputError: `bad_case_id` for an id that is no plain folder name.
        """
        _require_identifier(case_id)
        there = (self.root / "cases" / case_id).is_dir()
        return there or any(entry.id == case_id for entry in self._manifest().cases)

    def geometry(self, case_id: str, name: str) -> Geometry:
        """The grid of an image of a case that was finished before; errors as `Cohort.volume`."""
        path = self.root / "cases" / case_id / file_name(name)
        if path.is_file():
            return read_nifti(path).geometry
        cohort = open_cohort(self._place)
        case = next(case for case in cohort.cases() if case.id == case_id)
        return cohort.volume(case, name).geometry

    def add(
        self,
        case_id: str,
        patient: str,
        *,
        volumes: Mapping[str, Volume],
        fields: Mapping[str, DisplacementField] | None = None,
        landmarks: Mapping[str, Landmarks] | None = None,
        attributes: Mapping[str, object] | None = None,
        split: Split | None = None,
    ) -> None:
        """Write one case; nothing happens where it was finished before.

        CT is stored in whole HU (int16), masks as uint8, label maps as small integers, everything else as float32.

        Args:
            case_id: pseudonymous, unique in the cohort.
            patient: pseudonymous; all cases of a patient land in one split.
            volumes: by the names of `Case.files`.
            fields: `truth_field_{a}_from_{b}` by that name.
            landmarks: by the role of their image.
            attributes: JSON values.
            split: settles the patient's split; None leaves it to `finish`.

        Raises:
            BadInputError: `bad_case_id` for an id that is no plain folder name.
            WorkFailedError: `storage_full` (507); nothing of the case is left.
        """
        _require_identifier(patient)
        if self.has(case_id):
            return
        # another process may have sent its cases and cleared the folder
        (self.root / "cases").mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".part-{case_id}-", dir=self.root / "cases"))
        try:
            for name, volume in volumes.items():
                write_nifti(_stored(name, volume), partial / file_name(name))
            for name, field in (fields or {}).items():
                write_field(field, partial / file_name(name))
            for role, points in (landmarks or {}).items():
                write_landmarks(points, partial / file_name(f"{role}_landmarks"))
            names = [*volumes, *(fields or {}), *(f"{role}_landmarks" for role in landmarks or {})]
            entries = {name: _entry(case_id, partial / file_name(name)) for name in sorted(names)}
            record = _Record(
                id=case_id,
                patient=patient,
                split=split,
                files=entries,
                attributes=cast(dict[str, JsonValue], dict(attributes or {})),
            )
            (partial / RECORD_NAME).write_text(record.model_dump_json(indent=1), encoding="utf-8")
            partial.chmod(0o755)
            with suppress(FileExistsError):
                # another process may have finished the same case: its folder stays
                _rename_folder(partial, self.root / "cases" / case_id)
        except OSError as error:
            message = f"{case_id}: the cohort's folder cannot be written; make room and run the command again"
            raise WorkFailedError(message, code="storage_full", status=507) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def finish(
        self, *, shares: Mapping[Split, float] = PAPER_SHARES, seed: int = 0, stratify: str | None = None
    ) -> Manifest:
        """Divide the patients and write the manifest; may be called again after further cases.

        Args:
            shares: relative sizes of the splits, as fractions or counts; the paper's 28 (24 + 4 that select the
                checkpoint) and 11 by default.
            seed: which of the possible divisions.
            stratify: name of an attribute whose values are spread evenly over the splits.

        Raises:
            BadInputError: `patient_in_two_splits` where cases of one patient were given different splits,
                `empty_cohort` where there is no case.
        """
        # what one process reads, divides and writes must not be what another has just extended
        with _alone(self.root):
            records = {record.id: record for record in self._records()}
            divide = partial(_divided, records=records, shares=shares, seed=seed, stratify=stratify)
            if self._url is not None:
                manifest = _send(records, self.root, self._url, divide)
                _clear(self.root, records)
                return manifest
            manifest = divide(self._manifest())
            with atomic_path(self.root / MANIFEST_NAME) as path:
                path.write_bytes(manifest.to_json())
            for record in records:
                (self.root / "cases" / record / RECORD_NAME).unlink(missing_ok=True)
            return manifest

    def _manifest(self) -> Manifest:
        if self._url is not None:
            return _remote_manifest(self._url)[0]
        path = self.root / MANIFEST_NAME
        return parse_manifest(path.read_bytes()) if path.is_file() else Manifest(cases=())

    def _records(self) -> Iterator[_Record]:
        for path in sorted((self.root / "cases").glob(f"[!.]*/{RECORD_NAME}")):
            yield _Record.model_validate_json(path.read_bytes())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a folder's lock; it is of the folder itself, for a lock file would stay behind."""
    while (descriptor := _locked(folder)) is None:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The locked folder's descriptor; None where the folder was removed while its lock was waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    # some network file systems lock no folders
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _divided(
    before: Manifest, records: Mapping[str, _Record], shares: Mapping[Split, float], seed: int, stratify: str | None
) -> Manifest:
    """The manifest with the finished cases, every patient in a split; errors as `CohortWriter.finish`."""
    known = [_as_record(entry) for entry in before.cases]
    cases = [case for case in known if case.id not in records] + list(records.values())
    if not cases:
        raise BadInputError("the cohort has no case; add one before finishing it", code="empty_cohort")
    settled = _settled(known + cases)
    strata = {case.patient: str(case.attributes.get(stratify, "")) if stratify else "" for case in cases}
    splits = assign_splits(strata, shares=shares, seed=seed, fixed=settled)
    return Manifest(
        cases=tuple(
            CaseEntry(**(case.model_dump() | {"split": splits[case.patient]}))
            for case in sorted(cases, key=lambda case: case.id)
        )
    )


def _staging(url: s3.S3Url) -> Path:
    place = hashlib.sha256(f"{url.bucket}/{url.prefix}".encode()).hexdigest()
    return cache_folder() / "outgoing" / place


def _remote_manifest(url: s3.S3Url) -> tuple[Manifest, str | None]:
    """The manifest in a bucket and its ETag."""
    try:
        data, tag = s3.read_tagged(url.bucket, url.key(MANIFEST_NAME))
    except BadInputError as error:
        if error.code != "missing_file":
            raise
        return Manifest(cases=()), None
    return parse_manifest(data), tag


def _send(
    records: Mapping[str, _Record], root: Path, url: s3.S3Url, divide: Callable[[Manifest], Manifest]
) -> Manifest:
    """Send the files of finished cases, then the manifest that `divide` makes of the one that is there."""
    before, tag = _remote_manifest(url)
    manifest = divide(before)
    entries = [entry for record in records.values() for entry in record.files.values()]
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda e: s3.upload(root / e.path, url.bucket, url.key(e.path), e.sha256), entries))
    while manifest != before and not s3.replace_object(url.bucket, url.key(MANIFEST_NAME), manifest.to_json(), tag):
        # another machine has extended the cohort meanwhile
        before, tag = _remote_manifest(url)
        manifest = divide(before)
    return manifest


def _clear(root: Path, sent: Iterable[str]) -> None:
    """Remove what was sent from a staging folder; cases of another process stay."""
    for case_id in sent:
        shutil.rmtree(root / "cases" / case_id)
    with suppress(OSError):
        (root / "cases").rmdir()
        root.rmdir()


def _require_identifier(word: str) -> None:
    if not re.fullmatch(IDENTIFIER, word):
        raise BadInputError(
            "case and patient ids are pseudonyms: up to 64 letters, digits, '-', '_' and '.', a letter or digit first",
            code="bad_case_id",
        )


def _stored(name: str, volume: Volume) -> Volume:
    data = np.asarray(volume.data)
    if name in CT_NAMES:
        limits = np.iinfo(np.int16)
        return volume.with_data(np.clip(np.rint(data), limits.min, limits.max).astype(np.int16))
    if MASK_NAME.search(name):
        return volume.with_data(volume.as_mask().astype(np.uint8))
    if LABEL_NAME.search(name):
        return volume.with_data(np.rint(data).astype(np.uint8 if data.max(initial=0) < 256 else np.int16))
    return volume.with_data(volume.as_float())


def _entry(case_id: str, path: Path) -> FileEntry:
    return FileEntry(path=f"cases/{case_id}/{path.name}", bytes=path.stat().st_size, sha256=sha256_of(path))


def _as_record(entry: CaseEntry) -> _Record:
    return _Record(**entry.model_dump())


def _settled(cases: list[_Record]) -> dict[str, Split]:
    settled: dict[str, Split] = {}
    for case in cases:
        if case.split is not None and settled.setdefault(case.patient, case.split) != case.split:
            raise BadInputError(
                f"patient {case.patient} was given two splits; every case of a patient stands in one",
                code="patient_in_two_splits",
            )
    return settled


def _rename_folder(source: Path, target: Path) -> None:
    # rename() onto an existing, non-empty folder fails on POSIX: whoever was first wins
    try:
        source.rename(target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(target.name) from error
        raise
