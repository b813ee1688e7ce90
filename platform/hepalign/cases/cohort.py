"""Reading a cohort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hepalign.cases import s3
from hepalign.cases.case import Case, Split
from hepalign.cases.landmarks import Landmarks, read_landmarks
from hepalign.cases.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest
from hepalign.cases.prepared import cache_folder
from hepalign.cases.store import FolderStore, S3Store, Store
from hepalign.errors import BadInputError
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import read_field

T = TypeVar("T")


class Cohort:
    """Cases and their files; every file's SHA-256 is checked against the manifest when it is read.

    Args:
        store: where the files lie.
        name: how the cohort is called in reports.

    Raises:
        BadInputError: `missing_file` or `bad_manifest`.
    """

    def __init__(self, store: Store, name: str) -> None:
        data = store.read(MANIFEST_NAME)
        self.name = name
        self.digest = hashlib.sha256(data).hexdigest()
        self.manifest: Manifest = parse_manifest(data)
        self._store = store
        self._entries = {case.id: case for case in self.manifest.cases}

    def cases(self, split: Split | None = None) -> list[Case]:
        """The cases of one split (of all where it is None), in the manifest's order."""
        return [entry.case() for entry in self.manifest.cases if split is None or entry.split == split]

    def entry(self, case: Case, name: str) -> FileEntry:
        """Path, size and digest of one of the case's files.

        Raises:
            BadInputError: `missing_role` where the case has no such file.
        """
        try:
            return self._entries[case.id].files[name]
        except KeyError as error:
            raise BadInputError(f"case {case.id} of cohort {self.name} has no {name}", code="missing_role") from error

    def path(self, case: Case, name: str) -> Path:
        """A local, verified copy of one of the case's files; errors as `Store.fetch` and `entry`."""
        return self._store.fetch(self.entry(case, name))

    def volume(self, case: Case, name: str) -> Volume:
        """One of the case's images, masks or label maps."""
        return self._read(case, name, read_nifti)

    def field(self, case: Case, name: str) -> DisplacementField:
        """One of the case's truth fields."""
        return self._read(case, name, read_field)

    def landmarks(self, case: Case, role: str) -> Landmarks:
        """The landmarks of one of the case's images."""
        return self._read(case, f"{role}_landmarks", read_landmarks)

    def stored(self) -> list[str]:
        """Keys of every file that lies below `cases/`, whether the manifest knows it or not, sorted."""
        return self._store.list_cases()

    def _read(self, case: Case, name: str, reader: Callable[[Path], T]) -> T:
        try:
            return reader(self.path(case, name))
        except BadInputError as error:
            # a fetched copy may be called by its digest: name the case's file instead
            raise BadInputError(f"case {case.id}, {name}: {error.message}", code=error.code) from error


def open_cohort(location: Path | str, *, cache: Path | None = None) -> Cohort:
    """The cohort in a folder or under an `s3://bucket/prefix`.

    Args:
        location: the folder or the prefix.
        cache: where copies of a cohort under s3:// are kept; by default `HEPALIGN_CACHE`.

    Raises:
        BadInputError: `missing_cohort` where there is no manifest, `bad_manifest` where it cannot be used.
    """
    word = str(location)
    if word.startswith(s3.SCHEME):
        url = s3.S3Url.parse(word)
        try:
            return Cohort(S3Store(url, cache or cache_folder()), url.prefix.rpartition("/")[2] or url.bucket)
        except BadInputError as error:
            if error.code != "missing_file":
                raise
            message = f"no cohort under this prefix ({MANIFEST_NAME} is missing); check the place"
            raise BadInputError(message, code="missing_cohort") from error
    root = Path(location)
    if not (root / MANIFEST_NAME).is_file():
        raise BadInputError(f"{root.name}: no cohort here ({MANIFEST_NAME} is missing)", code="missing_cohort")
    return Cohort(FolderStore(root), root.resolve().name)
