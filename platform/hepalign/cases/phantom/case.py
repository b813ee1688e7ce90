"""What a generator hands over: one made-up case, in the words of a cohort's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hepalign.cases.landmarks import Landmarks
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField


@dataclass(frozen=True)
class PhantomCase:
    """Images, truth and landmarks of a made-up case.

    Args:
        volumes: by the names of `cases.case.Case.files`; CT as int16 HU, MR as float32, masks as bool, tumours as
            uint8 labels.
        fields: `truth_field_{a}_from_{b}`, on a's grid, mapping a's points into b.
        landmarks: by role; one name is one anatomical point in every image.
        attributes: JSON values only.
    """

    volumes: Mapping[str, Volume]
    fields: Mapping[str, DisplacementField]
    landmarks: Mapping[str, Landmarks]
    attributes: Mapping[str, object] = field(default_factory=dict)
