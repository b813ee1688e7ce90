"""A candidate release on real work, in the shadow: compared and counted, never returned to anyone."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepalign.errors import HepalignError
from hepalign.transform.files import read_field
from hepalign_serve.replicas import Releases
from hepalign_serve.settings import Replicas, Settings
from hepalign_serve.task import Errand, Pinned

if TYPE_CHECKING:
    from hepalign_serve.pipeline import Pipeline

FIELDS = {"plan": "field_pct_from_pmr.nii.gz", "guide": "field_ict_from_pct.nii.gz"}
# A guide that comes in gets the cores: the shadow takes what is left.
NICENESS = 19


class Shadow:
    """The whole chain in one process of its own."""

    def __init__(self, name: str, settings: Settings, share: Replicas, pipeline: Pipeline | None) -> None:
        os.nice(NICENESS)
        self._releases = Releases(name, settings, share, pipeline)

    async def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release; `{error}` when it is refused."""
        return await asyncio.to_thread(self._releases.warm, release)

    async def compare(self, kind: str, candidate: Pinned, errand: Errand, served: str) -> dict[str, Any]:
        """Does a finished job again with the candidate.

        Args:
            kind: `plan` or `guide`.
            candidate: the release.
            errand: the job's, with an `out` of its own, which is gone afterwards.
            served: key of the folder with the results that counted.

        Returns:
            `{status, difference_mm, seconds}` or `{problem}`: the code of what went wrong.
        """
        return await asyncio.to_thread(self._compare, kind, candidate, errand, served)

    def _compare(self, kind: str, candidate: Pinned, errand: Errand, served: str) -> dict[str, Any]:
        pipeline, shelf = self._releases.pipeline, self._releases.shelf
        out, began = shelf.folder / errand.out, time.monotonic()
        plan = kind == "plan"
        compute, step = (pipeline.plan, pipeline.synthesise) if plan else (pipeline.guide, pipeline.inpaint)
        try:
            out.mkdir(parents=True)
            found = compute(self._releases.bundle(candidate), errand.here(shelf), step, lambda *_: None)
            mean_mm = difference_mm(out / FIELDS[kind], shelf.fetch(f"{served}/{FIELDS[kind]}"))
        except HepalignError as error:
            return {"problem": error.code}
        except Exception as error:  # noqa: BLE001 (a candidate may fail in any way; nobody waits for it)
            return {"problem": type(error).__name__}
        finally:
            shutil.rmtree(out, ignore_errors=True)
        seconds = round(time.monotonic() - began, 3)
        return {"status": found["quality"]["status"], "difference_mm": round(mean_mm, 4), "seconds": seconds}


def difference_mm(one: Path, other: Path) -> float:
    """Mean distance of the places that two fields on one grid send its points to."""
    distance = np.linalg.norm(read_field(one).vectors - read_field(other).vectors, axis=-1)
    return float(distance.mean())
