"""Whether voxels can be what they are said to be. Geometry and files are checked where they are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError
from hepalign.image.volume import Volume

AIR_HU = -900.0
SOFT_TISSUE_HU = (-200.0, 300.0)
# A CT holds a thousandth of air around or in the patient, and soft tissue as a hump of its histogram.
LEAST_AIR = 1e-3
LEAST_SOFT_TISSUE = 0.02
# Reconstruction and streaks undershoot air a little; -2000 or -3024 were put there by the scanner or an export.
PADDING_HU = -1500.0
_HUMP_BIN_HU = 25.0


def check_ct(volume: Volume, name: str, report: list[str] | None = None) -> None:
    """Refuse what is no CT in HU; warn of padding.

    Args:
        volume: HU.
        name: role or base name, for messages.
        report: warnings are appended here.

    Raises:
        BadInputError: `constant_volume`; `modality_mismatch` without air at or below -900 HU beside a soft-tissue
            mode: an MR, or a CT whose rescale was not applied.
    """
    data = volume.as_float()
    _check_varies(data, name)
    if not is_ct(data):
        message = f"{name}: no CT in HU: it has no air (≤ {AIR_HU:g}) beside soft tissue; "
        raise BadInputError(message + "is it an MR, or was its rescale not applied?", code="modality_mismatch")
    padded = float((data < PADDING_HU).mean())
    if padded and report is not None:
        report.append(f"{name}: {padded:.1%} of the voxels are padding ({data.min():g} HU), read as air")


def check_mr(volume: Volume, name: str) -> None:
    """Refuse what is no MR.

    Raises:
        BadInputError: `constant_volume`; `modality_mismatch` for a CT in HU.
    """
    data = volume.as_float()
    _check_varies(data, name)
    if is_ct(data):
        message = f"{name}: it has the air and soft tissue of a CT in HU; send the MR"
        raise BadInputError(message, code="modality_mismatch")


def is_ct(data: NDArray[np.float32]) -> bool:
    """Whether HU of any shape have air at or below -900 and a histogram that peaks within soft tissue."""
    if float((data <= AIR_HU).mean()) < LEAST_AIR:
        return False
    tissue = data[(data > SOFT_TISSUE_HU[0]) & (data < SOFT_TISSUE_HU[1])]
    if tissue.size < LEAST_SOFT_TISSUE * data.size:
        return False
    # A mode: the fullest bin stands above an even spread over the window.
    bins = int((SOFT_TISSUE_HU[1] - SOFT_TISSUE_HU[0]) / _HUMP_BIN_HU)
    counts, _ = np.histogram(tissue, bins=bins, range=SOFT_TISSUE_HU)
    return bool(counts.max() > 1.5 * counts.mean())


def _check_varies(data: NDArray[np.float32], name: str) -> None:
    if data.size == 0 or float(data.min()) == float(data.max()):
        raise BadInputError(f"{name}: one value everywhere; send the image itself", code="constant_volume")
