"""One small interface for every peer: the same images, the same start, the same mask, timed the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Literal

import numpy as np

from hepalign.evaluation.baselines.prepare import Modality, prepare, start
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3
from hepalign.transform.displacement import DisplacementField, compose

Family = Literal["linear", "deformable"]


@dataclass(frozen=True, eq=False)
class Problem:
    """What a peer is given, after the preparation and the start that all of them share.

    Args:
        moving, fixed: prepared images (float32).
        valid: True where the fixed image may be believed: outside the coarse probe mask.
        modalities: of moving and fixed.
        threads: how many threads the peer may use.
        seed: for the peers that sample at random.
    """

    moving: Volume
    fixed: Volume
    valid: Mask3
    modalities: tuple[Modality, Modality]
    threads: int
    seed: int


@dataclass(frozen=True)
class Baseline:
    """A peer: its name, what it is and with which settings, and the call that registers.

    Args:
        engine: solves a problem; its field lives on the fixed image's grid.
        module: the Python module it needs beyond the core dependencies, or None.
        binary: the program it needs on the PATH, or None.
        settings: for the report: which settings, and why.
    """

    name: str
    family: Family
    settings: str
    engine: Callable[[Problem], DisplacementField]
    module: str | None = None
    binary: str | None = None

    def missing(self) -> str | None:
        """Why this peer cannot run here, or None when it can."""
        if self.module is not None and find_spec(self.module) is None:
            return f"{self.name} needs the Python package {self.module} (the extra hepalign[baselines])"
        if self.binary is not None and which(self.binary) is None:
            return f"{self.name} needs the program {self.binary} on the PATH"
        return None

    def register(
        self,
        moving: Volume,
        fixed: Volume,
        *,
        fixed_mask: Mask3 | None = None,
        modalities: tuple[Modality, Modality] = ("ct", "ct"),
        threads: int = 1,
        seed: int = 0,
    ) -> DisplacementField:
        """The field on the fixed grid that resamples `moving` onto `fixed`.

        Args:
            fixed_mask: True where the fixed image is valid (outside the probe's coarse mask); None: everywhere.
            modalities: of moving and fixed; they choose the preparation.
            threads: pinned, so that times can be compared.
        """
        valid = np.ones(fixed.geometry.shape, bool) if fixed_mask is None else np.asarray(fixed_mask, bool)
        prepared = prepare(moving, modalities[0]), prepare(fixed, modalities[1])
        matrix = start(*prepared, valid)
        # the moving image brought nearer: its point matrix(x) now stands at x
        nearer = Geometry(moving.geometry.shape, np.linalg.inv(matrix) @ moving.geometry.affine)
        problem = Problem(Volume(prepared[0].data, nearer), prepared[1], valid, modalities, threads, seed)
        field = self.engine(problem)
        return compose(DisplacementField.from_linear(matrix, field.geometry), field)
