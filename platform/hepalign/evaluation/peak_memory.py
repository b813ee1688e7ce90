"""The most memory a step held, by asking the kernel from a thread."""

from __future__ import annotations

import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

SAMPLE_S = 0.05
_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """`with PeakMemory() as peak: …; peak.mb` is the largest resident size inside the block, MB.

    Where there is no /proc the process's own maximum stands in, which never falls again.
    """

    def __init__(self) -> None:
        self.mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        self.mb = max(self.mb, _resident_mb())


def _resident_mb() -> float:
    if _STATM.exists():
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def own_peak_mb() -> float:
    """The largest resident size of this process since it began or since `restart_own_peak`, MB.

    The kernel's ru_maxrss of a started process begins at its parent's size; VmHWM begins anew.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return _resident_mb()


def restart_own_peak() -> None:
    """Let `own_peak_mb` count from here, where the kernel can."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
