"""Progress on stderr: a bar for people, lines for logs."""

from __future__ import annotations

import sys
import time


class Steps:
    """Counts finished pieces of one task; prints at most once a second and always at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = time.monotonic()
        self._printed = 0.0

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` pieces are finished."""
        now = time.monotonic()
        if done < total and now - self._printed < 1.0:
            return
        self._printed = now
        left = (now - self.started) / max(done, 1) * (total - done)
        ending = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(f"{self.name}: {done}/{total}, about {left:.0f} s left   ", end=ending, file=sys.stderr, flush=True)
