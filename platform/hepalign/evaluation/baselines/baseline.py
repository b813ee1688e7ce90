"""One small interface for every peer: the same images, the same start, the same mask, timed the same way."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Literal

import numpy as np

from hepalign.evaluation.baselines.problem import Modality
from hepalign.evaluation.baselines.task import Task
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3

Family = Literal["linear", "deformable"]


@dataclass(frozen=True)
class Baseline:
    """A peer: its name, what it is and with which settings, and the function that registers.

    Args:
        settings: for the report: which settings, and why.
        engine: `module.function` here: solves a Problem; its field lives on the fixed image's grid.
        module: the Python module it needs beyond the core dependencies, or None.
        binary: the program it needs on the PATH, or None.
    """

    name: str
    family: Family
    settings: str
    engine: str
    module: str | None = None
    binary: str | None = None

    def missing(self) -> str | None:
        """Why this peer cannot run here, or None when it can."""
        if self.module is not None and find_spec(self.module) is None:
            return f"{self.name} needs the Python package {self.module} (the extra hepalign[baselines])"
        if self.binary is not None and which(self.binary) is None:
            return f"{self.name} needs the program {self.binary} on the PATH"
        return None

    def task(
        self,
        moving: Volume,
        fixed: Volume,
        *,
        fixed_mask: Mask3 | None = None,
        modalities: tuple[Modality, Modality] = ("ct", "ct"),
        threads: int = 1,
        seed: int = 0,
        both_ways: bool = False,
    ) -> Task:
        """The registration that gives the field on the fixed grid which resamples `moving` onto it, for `run_apart`.

        Args:
            fixed_mask: True where the fixed image is valid (outside the probe's coarse mask); None: everywhere.
            modalities: of moving and fixed; they choose the preparation.
            threads: pinned, so that times can be compared; with one thread a second call gives the same field.
            both_ways: register fixed onto moving as well (nothing masked there); not in the time.
        """
        valid = np.ones(fixed.geometry.shape, bool) if fixed_mask is None else np.asarray(fixed_mask, bool)
        return Task(self.engine, moving, fixed, valid, modalities, threads, seed, both_ways)
