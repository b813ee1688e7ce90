"""What a peer is given to solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hepalign.image.volume import Volume
from hepalign.shapes import Mask3

Modality = Literal["mr", "ct"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Two images after the preparation and the start that all peers share.

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
