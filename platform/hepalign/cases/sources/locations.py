"""Files named on a command line: local ones, or objects under s3://."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hepalign.cases import s3
from hepalign.errors import BadInputError, UsageError
from hepalign.image.archive import MAX_MEMBERS


@contextmanager
def local_copy(location: Path | str, *, name: str) -> Iterator[Path]:
    """The file or folder of a location; an s3:// object, or all objects below a prefix, is downloaded for the while.

    Args:
        location: a path, `s3://bucket/key` or `s3://bucket/prefix`.
        name: what to call it in messages: its own name may be a patient's.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: `too_large` (413) for a prefix of more than one series; those of `s3.named_errors`.
    """
    word = str(location)
    if not word.startswith(s3.SCHEME):
        if not Path(location).exists():
            raise UsageError(f"{name}: there is no such file or folder; check the path", code="no_such_file")
        yield Path(location)
        return
    url = s3.S3Url.parse(word)
    keys = s3.list_keys(url.bucket, url.prefix)
    with tempfile.TemporaryDirectory(prefix="hepalign-") as scratch:
        if url.prefix in keys:
            # endings tell nothing away, and readers go by some of them
            path = Path(scratch) / f"object{''.join(Path(url.prefix).suffixes[-2:])}"
            s3.download(url.bucket, url.prefix, path)
            yield path
            return
        below = [key for key in keys if key.startswith(f"{url.prefix}/") and not key.endswith("/")]
        if not below:
            raise UsageError(f"{name}: there is no such object or prefix; check the place", code="no_such_file")
        if len(below) > MAX_MEMBERS:
            message = f"{name}: {len(below)} objects under this prefix; name that of one series"
            raise BadInputError(message, code="too_large", status=413)
        folder = Path(scratch) / "series"
        folder.mkdir()
        for number, key in enumerate(below):
            s3.download(url.bucket, key, folder / f"{number:06d}")
        yield folder
