"""One base error with a stable `code`; the CLI and HTTP map it to an exit status and a problem document."""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BAD_DATA = 3


class HepalignError(Exception):
    """Something went wrong that its reader can mend.

    Args:
        message: what, where, and the mend, in one line. It never holds patient data: name a file by its base
            name or its role, never by its folder or its tags.
        code: a stable snake_case name of the fault; each stands in docs/reference/errors.md.
        status: the HTTP status that fits, for the serving layer.
    """

    exit_code: ClassVar[int] = EXIT_FAILED
    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = self.default_status if status is None else status

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Ray, DataLoader workers): keep code and status through pickling.
        return _rebuild, (type(self), self.message, self.code, self.status)


class WorkFailedError(HepalignError):
    """The input was fine and the work failed."""

    exit_code = EXIT_FAILED
    default_status = 503


class UsageError(HepalignError):
    """The caller's words are off: an unknown key, a value out of range, a missing option."""

    exit_code = EXIT_USAGE
    default_status = 400


class BadInputError(HepalignError):
    """The data that came in cannot be used as it is."""

    exit_code = EXIT_BAD_DATA
    default_status = 422


def _rebuild(kind: type[HepalignError], message: str, code: str, status: int) -> HepalignError:
    return kind(message, code=code, status=status)
