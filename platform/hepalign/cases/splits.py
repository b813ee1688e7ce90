"""Dividing patients into train, val and test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hepalign.cases.case import Split
from hepalign.errors import UsageError

# The paper's 28 training and 11 test patients; 4 of the 28 select the checkpoint, for which it names no images.
PAPER_SHARES: dict[Split, float] = {"train": 24, "val": 4, "test": 11}


def split_counts(patients: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    """How many of `patients` go into each split: largest remainders, and at least one each where there are enough.

    Args:
        patients: how many there are.
        shares: relative sizes (fractions or counts), each ≥ 0, not all 0.

    Raises:
        UsageError: `bad_split_shares` for shares below zero or all zero.
    """
    if min(shares.values(), default=-1) < 0 or sum(shares.values()) <= 0:
        raise UsageError("split shares are numbers of at least 0, and not all 0", code="bad_split_shares")
    wanted = {split: patients * share / sum(shares.values()) for split, share in shares.items()}
    counts = {split: int(np.floor(share)) for split, share in wanted.items()}
    by_remainder = sorted(wanted, key=lambda split: counts[split] - wanted[split])
    for split in by_remainder[: patients - sum(counts.values())]:
        counts[split] += 1
    for split in (split for split, share in shares.items() if share > 0 and counts[split] == 0):
        largest = max(counts, key=lambda other: counts[other])
        if counts[largest] > 1:
            counts[largest] -= 1
            counts[split] += 1
    return counts


def assign_splits(
    strata: Mapping[str, str],
    *,
    shares: Mapping[Split, float] = PAPER_SHARES,
    seed: int = 0,
    fixed: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """A split for every patient, each stratum divided alike.

    Args:
        strata: patient to stratum (any word; the same word for all where nothing is stratified).
        shares: relative sizes of the splits.
        seed: which of the possible divisions.
        fixed: patients whose split is settled; they count towards the shares and never move.
    """
    fixed = {patient: split for patient, split in (fixed or {}).items() if patient in strata}
    wanted = split_counts(len(strata), shares) if strata else {}
    given: dict[Split, int] = {split: sum(1 for s in fixed.values() if s == split) for split in wanted}
    order = np.random.default_rng(seed).permutation(len(strata))
    patients = [sorted(strata)[n] for n in order]
    assigned: dict[str, Split] = dict(fixed)
    for patient in sorted((p for p in patients if p not in fixed), key=lambda p: strata[p]):
        open_splits = [split for split in wanted if given[split] < wanted[split]]
        # the emptiest split first (Webster's rule), so that every stratum is spread over all of them
        split: Split = min(open_splits, key=lambda s: (given[s] + 0.5) / wanted[s]) if open_splits else "train"
        given[split] = given.get(split, 0) + 1
        assigned[patient] = split
    return assigned
