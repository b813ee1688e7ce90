"""Where Ray keeps checkpoints: a folder that every node sees, or a bucket; a run's own files may lie beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pyarrow import fs

from hepalign.errors import WorkFailedError


def storage_uri(storage: str) -> str:
    """The place as Ray's file systems read it: they know no relative folders and no AWS_ENDPOINT_URL."""
    if "://" not in storage:
        return str(Path(storage).resolve())
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not storage.startswith("s3://") or not endpoint or "endpoint_override=" in storage:
        return storage
    return f"{storage}{'&' if '?' in storage else '?'}endpoint_override={quote(endpoint, safe='')}"


def has_checkpoints(storage: str | None, name: str) -> bool:
    """Whether a training of this name has left something at a place of its own choice.

    Raises:
        WorkFailedError: `store_unavailable`.
    """
    if storage is None:
        return False
    with _run_folder(storage, name) as (files, folder):
        return bool(files.get_file_info(folder).type != fs.FileType.NotFound)


def keep_file(storage: str, name: str, path: Path) -> None:
    """Put a copy of one of a training's files beside its checkpoints.

    Raises:
        WorkFailedError: `store_unavailable`.
    """
    with _run_folder(storage, name) as (files, folder):
        files.create_dir(folder)
        with files.open_output_stream(f"{folder}/{path.name}") as stream:
            stream.write(path.read_bytes())


def bring_file(storage: str, name: str, path: Path) -> None:
    """Put the copy that `keep_file` left at `path`, unless there is a file already, or no copy.

    Raises:
        WorkFailedError: `store_unavailable`.
    """
    if path.is_file():
        return
    with _run_folder(storage, name) as (files, folder):
        if files.get_file_info(f"{folder}/{path.name}").type == fs.FileType.File:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.open_input_stream(f"{folder}/{path.name}") as stream:
                path.write_bytes(stream.read())


@contextmanager
def _run_folder(storage: str, name: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """A training's folder at a place of its own choice."""
    try:
        files, root = fs.FileSystem.from_uri(storage_uri(storage))
        yield files, f"{root.rstrip('/')}/{name}"
    except (OSError, ValueError) as error:
        raise WorkFailedError(
            f"workers.storage: nothing answers at this place ({type(error).__name__}): check the bucket, its endpoint "
            "(AWS_ENDPOINT_URL) and the credentials",
            code="store_unavailable",
        ) from error


def remove_strays(files: fs.FileSystem, kept: Sequence[str]) -> None:
    """Remove the checkpoints that lie beside those kept: what a lost worker had under way, and nobody counts.

    Only for a training's own workers, while none of them uploads. Nothing is removed where none is kept: no list says
    then what is a stray.

    Args:
        files: where the checkpoints are.
        kept: the folders of those that the training knows, all of them in one.
    """
    names = {PurePosixPath(path).name for path in kept}
    # What cannot be removed takes space, and is no reason to end a training.
    with suppress(OSError):
        for folder in {str(PurePosixPath(path).parent) for path in kept}:
            for found in files.get_file_info(fs.FileSelector(folder)):
                stray = found.base_name.startswith("checkpoint_") and found.base_name not in names
                if stray and found.type == fs.FileType.Directory:
                    files.delete_dir(found.path)
