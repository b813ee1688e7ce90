"""Where images, results and releases lie: the data folder, kept in S3 as well where an operator says so."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hepalign.cases.store import Shelf
from hepalign.errors import HepalignError
from hepalign_serve.problems import RequestError, busy
from hepalign_serve.settings import Settings

FOLDERS = ("cases", "incoming", "releases", "shadow")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STORE_CODES = ("store_unavailable", "store_denied", "no_credentials")


def open_shelf(settings: Settings) -> Shelf:
    """The shelf of the settings."""
    return Shelf(settings.data_folder, settings.store_url)


@contextmanager
def storing() -> Iterator[None]:
    """Turns what a disk or an object store says into answers.

    Raises:
        RequestError: 507 `storage_full` when there is no room, 503 `storage_unavailable` for the rest.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise RequestError("there is no room left to store this", code="storage_full", status=507) from error
        raise busy("the store cannot be reached", "storage_unavailable", 503) from error
    except HepalignError as error:
        if error.code in _STORE_CODES:
            raise busy("the store cannot be reached", "storage_unavailable", 503) from error
        raise
