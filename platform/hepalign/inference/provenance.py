"""Where a result comes from: release, inputs, code, device; the same words in every file that leaves the system."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hepalign import __version__
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.transform.displacement import DisplacementField

RESEARCH_USE = "research use only"
CONVENTION = "warped(x) = moving(x + u(x)); x on the fixed image; millimetres; files in ITK's LPS, JSON and CSV in RAS"


def provenance(bundle: Bundle, inputs: Mapping[str, Volume], *, device: str = "cpu") -> dict[str, object]:
    """Release, weight digests, input digests, code version and device of a computation."""
    return {
        "research_use_only": RESEARCH_USE,
        "release": {"name": bundle.manifest["name"], "version": bundle.manifest["version"]},
        "weight_digests": dict(bundle.digests),
        "input_digests": {name: volume_digest(volume) for name, volume in inputs.items()},
        "code_version": __version__,
        "device": device,
    }


def volume_digest(volume: Volume) -> str:
    """SHA-256 of a volume's voxels and grid (not of the file it came in)."""
    return _digest(np.asarray(volume.data), volume.geometry.affine)


def field_digest(field: DisplacementField) -> str:
    """SHA-256 of a field's vectors and grid."""
    return _digest(field.vectors, field.geometry.affine)


def _digest(data: NDArray[np.generic], affine: NDArray[np.float64]) -> str:
    # Storage may turn bool into uint8, float64 into float32 and -0 into 0: none of that is another image.
    kind = np.float32 if np.issubdtype(data.dtype, np.floating) else np.int32
    plain = np.ascontiguousarray(data, dtype=kind) + kind(0)
    content = hashlib.sha256(plain.view(np.uint8).data)
    content.update(f"{plain.dtype.str} {plain.shape}".encode())
    content.update(np.ascontiguousarray(affine.round(3), dtype=np.float32).tobytes())
    return content.hexdigest()
