"""Progress on stderr: a bar for people, lines for logs."""

from __future__ import annotations

import sys
import time

SPOKEN_IN_MINUTES_S = 180


class Steps:
    """Counts finished pieces of one task; prints at most once a second and always at the end.

    What a resumed task found finished does not count for the time that is left.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = time.monotonic()
        self._printed = 0.0
        self._found: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` pieces are finished."""
        now = time.monotonic()
        if self._found is None:
            self._found = done - 1
        if done < total and now - self._printed < 1.0:
            return
        self._printed = now
        left_s = (now - self.started) / (done - self._found) * (total - done)
        left = f"{left_s:.0f} s" if left_s < SPOKEN_IN_MINUTES_S else f"{left_s / 60:.0f} min"
        ending = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(f"{self.name}: {done}/{total}, about {left} left   ", end=ending, file=sys.stderr, flush=True)
