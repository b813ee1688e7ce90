"""Where a cohort's bytes lie: a folder, or an s3:// prefix behind a content-addressed cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hepalign.cases import s3
from hepalign.cases.manifest import FileEntry, sha256_of
from hepalign.cases.prepared import cache_unusable
from hepalign.errors import BadInputError

# Everything of a cohort but its manifest lies below it.
CASES = "cases"


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

    def list_cases(self) -> list[str]:
        """Keys of all that lies below `cases/`, sorted."""
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
        if not _is_entry(path, entry):
            raise changed_file(entry.path)
        return path

    def list_cases(self) -> list[str]:
        """Keys of all that lies below `cases/`, sorted."""
        found = (path for path in (self.root / CASES).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)


class S3Store:
    """A cohort under `s3://bucket/prefix`; its files are kept in a cache named by their SHA-256.

    Processes share the cache: one downloads a file, the others wait for it; a download that broke off goes on where
    it stopped, also in another process.

    Args:
        url: the cohort's place.
        cache: where the copies lie.
    """

    def __init__(self, url: s3.S3Url, cache: Path) -> None:
        self.url, self.cache = url, cache

    def read(self, key: str) -> bytes:
        """The object's bytes; errors as `Store.read` and `s3.named_errors`."""
        return s3.read_object(self.url.bucket, self.url.key(key))

    def fetch(self, entry: FileEntry) -> Path:
        """A verified copy in the cache; errors as `Store.fetch` and `s3.named_errors`."""
        path = self.cache / "objects" / entry.sha256[:2] / entry.sha256
        with _usable_cache():
            path.parent.mkdir(parents=True, exist_ok=True)
            # flock ends with its process, so a killed download locks nobody out
            with path.with_name(f"{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_entry(path, entry):
                    self._download(entry, path)
        return path

    def list_cases(self) -> list[str]:
        """Keys of all that lies below `cases/`, sorted; errors as `s3.named_errors`."""
        above = self.url.key("")
        keys = s3.list_keys(self.url.bucket, self.url.key(f"{CASES}/"))
        return sorted(key.removeprefix(above) for key in keys if not key.endswith("/"))

    def _download(self, entry: FileEntry, path: Path) -> None:
        partial = path.with_name(f"{path.name}.part")
        resumed = partial.exists()
        s3.download(self.url.bucket, self.url.key(entry.path), partial)
        if not _is_entry(partial, entry) and resumed:
            # what was left over may have been another object's beginning
            partial.unlink()
            s3.download(self.url.bucket, self.url.key(entry.path), partial)
        if not _is_entry(partial, entry):
            partial.unlink()
            raise changed_file(entry.path)
        partial.replace(path)


def _is_entry(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256


@contextmanager
def _usable_cache() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cache_unusable() from error


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


class Shelf:
    """A working folder whose finished files are also kept under an `s3://` prefix, where one is given.

    Keys are POSIX paths below the folder. With a prefix the folder is a cache: a file that is not there is fetched.

    Args:
        folder: the working folder.
        url: where the files are kept, `s3://bucket/prefix`; empty: the folder is all there is.
    """

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.url = s3.S3Url.parse(url) if url else None

    def keep(self, key: str) -> None:
        """Makes a file of the folder lasting; errors as `s3.named_errors`."""
        if self.url is not None:
            path = self.folder / key
            s3.upload(path, self.url.bucket, self.url.key(key), sha256_of(path))

    def fetch(self, key: str) -> Path:
        """The local file of a key; errors as `Store.read` and `s3.named_errors`."""
        path = self.folder / key
        if not path.is_file() and self.url is not None:
            with atomic_path(path) as partial:
                s3.download(self.url.bucket, self.url.key(key), partial)
        if not path.is_file():
            raise missing_file(path.name)
        return path

    def fetch_folder(self, key: str) -> Path:
        """The local folder of a key, with every file that is kept below it."""
        for found in self._kept(key):
            self.fetch(found)
        return self.folder / key

    def erase(self, key: str) -> None:
        """Removes a folder, here and where it is kept; nothing happens when there is none."""
        if self.url is not None:
            s3.erase(self.url.bucket, [self.url.key(found) for found in self._kept(key)])
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def folders(self, key: str) -> set[str]:
        """Names of the folders directly below a key, here and where they are kept."""
        here = {path.name for path in (self.folder / key).iterdir() if path.is_dir()}
        return here | {found.removeprefix(f"{key}/").partition("/")[0] for found in self._kept(key)}

    def check(self, key: str) -> None:
        """Whether the folder of a key can be written and its keeper answers; OSError or `s3.named_errors` if not."""
        with tempfile.TemporaryFile(dir=self.folder / key):
            pass
        if self.url is not None:
            s3.check(self.url.bucket)

    def _kept(self, key: str) -> list[str]:
        if self.url is None:
            return []
        keys = s3.list_keys(self.url.bucket, self.url.key(f"{key}/"))
        return [found.removeprefix(f"{self.url.prefix}/") if self.url.prefix else found for found in keys]
