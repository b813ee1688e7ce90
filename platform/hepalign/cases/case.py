"""One patient's images and everything known about them, as files of a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "val", "test"]
ROLES = ("pmr", "pct", "ict")


@dataclass(frozen=True)
class Case:
    """A case of a cohort.

    Args:
        id: pseudonymous, unique in its cohort, safe as a folder name.
        patient: pseudonymous; every case of one patient stands in one split.
        split: train, val or test.
        files: name to path relative to the cohort's root. Names are `pmr pct ict`, `{role}_liver`,
            `{role}_tumour`, `ict_probe_mask`, `ict_ablation`, `pmr_bias`, `{role}_landmarks`, and where the truth is
            known `ict_clean`, `pmr_true_ct`, `truth_field_{a}_from_{b}` (on a's grid, maps a's points into b).
        attributes: facts that are not images, JSON values only (contrast phase, generator, seed).
    """

    id: str
    patient: str
    split: Split
    files: Mapping[str, str]
    attributes: Mapping[str, object] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether the case has every one of these files."""
        return all(name in self.files for name in names)
