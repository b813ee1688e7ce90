"""Where a cohort's bytes lie: a folder, or an s3:// prefix behind a content-addressed cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hepalign.cases.manifest import FileEntry, sha256_of
from hepalign.errors import BadInputError


class Store(Protocol):
    """Reads a cohort's files; keys are POSIX paths below its root."""

    def read(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            BadInputError: `missing_file`.
        """
        ...

    def fetch(self, entry: FileEntry) -> Path:
        """A local file whose bytes are the entry's.

        Raises:
            BadInputError: `missing_file`, or `changed_file` where the bytes are not those of the manifest.
        """
        ...


class FolderStore:
    """A cohort in a local (or mounted) folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        """The file's bytes; errors as `Store.read`."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing_file(key) from error

    def fetch(self, entry: FileEntry) -> Path:
        """The file itself, once its digest was checked; errors as `Store.fetch`."""
        path = self.root / entry.path
        if not path.is_file():
            raise missing_file(entry.path)
        if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
            raise changed_file(entry.path)
        return path


def missing_file(key: str) -> BadInputError:
    """`missing_file`, for a key of the cohort."""
    return BadInputError(f"{key}: not found in the cohort; copy it again or rebuild the cohort", code="missing_file")


def changed_file(key: str) -> BadInputError:
    """`changed_file` (fault 81), for a key of the cohort."""
    return BadInputError(
        f"{key}: has changed since the manifest was written (SHA-256 differs); restore the file or rebuild the cohort",
        code="changed_file",
    )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `path` when the block ends well and vanishes when it does not.

    The sibling keeps the whole name as its ending, for writers that go by the suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
