"""A cohort's manifest: which cases there are, whose they are, and the SHA-256 of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from hepalign.cases.case import Case, Split
from hepalign.errors import BadInputError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_CHUNK_BYTES = 1 << 20

# An id is a folder name on every system and a part of a URL.
IDENTIFIER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Identifier = Annotated[str, StringConstraints(pattern=f"^{IDENTIFIER}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file: its path below the cohort's root, its size and its SHA-256."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CaseEntry(_Model):
    """One case as the manifest holds it."""

    id: Identifier
    patient: Identifier
    split: Split
    files: dict[str, FileEntry]
    attributes: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _files_stay_inside(self) -> CaseEntry:
        for name, entry in self.files.items():
            path = PurePosixPath(entry.path)
            if path.parent != PurePosixPath("cases", self.id) or path.name in ("..", "") or "\\" in entry.path:
                raise ValueError(f"case {self.id}: the path of {name} must be cases/{self.id}/FILE")
        return self

    def case(self) -> Case:
        """The case that this entry describes."""
        return Case(self.id, self.patient, self.split, {n: e.path for n, e in self.files.items()}, self.attributes)


class Manifest(_Model):
    """Everything a cohort holds; its canonical JSON is `manifest.json`."""

    schema_version: Literal[1] = 1
    cases: tuple[CaseEntry, ...]

    @model_validator(mode="after")
    def _ids_unique_and_no_leak(self) -> Manifest:
        ids = [case.id for case in self.cases]
        if len(set(ids)) != len(ids):
            raise ValueError("a case id stands twice")
        splits: dict[str, Split] = {}
        for case in self.cases:
            if splits.setdefault(case.patient, case.split) != case.split:
                raise ValueError(f"patient {case.patient} stands in two splits")
        return self

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`; equal manifests have equal bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from the bytes of its file.

    Raises:
        BadInputError: `bad_manifest`, saying which entry is off; a patient in two splits is one such fault.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BadInputError(
            f"{MANIFEST_NAME}: {where}: {first['msg']} (schema version {SCHEMA_VERSION}); write the cohort again",
            code="bad_manifest",
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_name(name: str) -> str:
    """A case file's base name: landmarks are CSV, everything else is gzipped NIfTI."""
    return f"{name}.csv" if name.endswith("_landmarks") else f"{name}.nii.gz"
