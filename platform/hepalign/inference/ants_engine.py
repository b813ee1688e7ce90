"""ANTs' rigid + SyN as a planning engine, as the paper did it (antspyx)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ants
import numpy as np

from hepalign.errors import WorkFailedError
from hepalign.image.volume import Volume
from hepalign.inference.workgrid import canonical
from hepalign.transform.displacement import DisplacementField, compose, resample_field
from hepalign.transform.files import read_field

SEED = 1


def ants_syn(moving: Volume, fixed: Volume) -> DisplacementField:
    """Register `moving` to `fixed` by ANTs' `SyN` preset; the field lives on the fixed image's grid.

    Raises:
        WorkFailedError: `ants_failed`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = ants.registration(
                _image(fixed),
                _image(moving),
                "SyN",
                outprefix=f"{scratch}/ants",
                random_seed=SEED,
                singleprecision=True,
            )
            warp_file, affine_file = (Path(name) for name in done["fwdtransforms"])
        except (RuntimeError, ValueError) as error:
            raise WorkFailedError("ANTs could not register the pair; try another engine", code="ants_failed") from error
        inner = read_field(warp_file)
        outer = read_field(affine_file, inner.geometry)
        return resample_field(compose(outer, inner), fixed.geometry)


def _image(volume: Volume) -> ants.ANTsImage:
    ordered = canonical(volume)
    flip = np.diag([-1.0, -1.0, 1.0])
    return ants.from_numpy(
        np.ascontiguousarray(ordered.data, dtype=np.float32),
        origin=tuple(flip @ np.asarray(ordered.geometry.origin_mm)),
        spacing=ordered.geometry.spacing_mm,
        direction=flip @ ordered.geometry.direction,
    )
