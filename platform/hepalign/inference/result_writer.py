"""A guide's files, packed while it still computes."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from hepalign.image.intensity import as_stored_ct
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.inference.overview import write_overview
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import write_field

if TYPE_CHECKING:
    from hepalign.inference.result import GuideResult

# Each holds a field twice while it packs it.
WRITERS = 2
_CTS = ("inpct", "pct_on_ict", "sct_on_ict")


class ResultWriter:
    """Writes CONTRACT's files of a guide into a folder on threads of its own; result.json comes last.

    Args:
        folder: made where it is missing; what an earlier result left in it does not pass for this one's.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "labels_on_ict.nii.gz"):
            (folder / name).unlink(missing_ok=True)
        self._folder = folder
        # compressing leaves Python's lock: a second file is packed, or the picture drawn, meanwhile
        self._threads = ThreadPoolExecutor(WRITERS)
        # where the computing takes every core, a thread beside it gains nothing
        self._at_once = torch.get_num_threads() < (os.cpu_count() or 1)
        self._written: dict[str, Future[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def keep(self, name: str, part: Volume | DisplacementField) -> None:
        """Begin to write a part that is final, where the computing leaves a core for it."""
        if self._at_once:
            self._write(name, part)

    def finish(self, result: GuideResult, *, h5: bool = False) -> None:
        """Write what is left of a result, and wait for all of it.

        Args:
            result: what was computed.
            h5: adds the fields as ITK transforms.
        """
        self._written["overview"] = self._threads.submit(write_overview, result, self._folder / "overview.png")
        for name, part in result.parts().items():
            if name not in self._written:
                self._write(name, part)
        for each in self._written.values():
            each.result()
        # one after the other: HDF5 is not made for threads
        for name, part in result.parts().items() if h5 else ():
            if isinstance(part, DisplacementField):
                write_field(part, self._folder / f"{name}.h5")
        (self._folder / "result.json").write_text(json.dumps(result.summary(), indent=2) + "\n", encoding="utf-8")

    def _write(self, name: str, part: Volume | DisplacementField) -> None:
        self._written[name] = self._threads.submit(_write_part, part, self._folder / f"{name}.nii.gz")


def _write_part(part: Volume | DisplacementField, path: Path) -> None:
    if isinstance(part, DisplacementField):
        write_field(part, path)
    else:
        write_nifti(as_stored_ct(part) if path.name.removesuffix(".nii.gz") in _CTS else part, path)
