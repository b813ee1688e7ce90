from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepalign.cases.splits import PAPER_SHARES, assign_splits, split_counts
from hepalign.errors import UsageError


def test_the_papers_39_patients() -> None:
    assert split_counts(39, PAPER_SHARES) == {"train": 24, "val": 4, "test": 11}
    assert split_counts(39, {"train": 28, "test": 11}) == {"train": 28, "test": 11}


@pytest.mark.parametrize(("patients", "counts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_few_patients_leave_no_split_empty_that_can_be_filled(patients: int, counts: tuple[int, int, int]) -> None:
    assert tuple(split_counts(patients, PAPER_SHARES).values()) == counts


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_every_patient_has_one_split_and_the_counts_hold(patients: int, seed: int) -> None:
    splits = assign_splits({f"p{n}": "" for n in range(patients)}, seed=seed)
    assert len(splits) == patients
    assert Counter(splits.values()) == Counter(split_counts(patients, PAPER_SHARES))


def test_strata_are_divided_alike() -> None:
    strata = {f"p{n}": "ab"[n % 2] for n in range(40)}
    splits = assign_splits(strata, shares={"train": 3, "test": 1})
    held = Counter(strata[p] for p, split in splits.items() if split == "test")
    assert held == {"a": 5, "b": 5}


def test_settled_patients_never_move_and_count_towards_the_shares() -> None:
    first = assign_splits({f"p{n}": "" for n in range(10)}, seed=1)
    more = assign_splits({f"p{n}": "" for n in range(39)}, seed=2, fixed=first)
    assert all(more[patient] == split for patient, split in first.items())
    assert Counter(more.values()) == {"train": 24, "val": 4, "test": 11}


def test_the_seed_decides_and_nothing_else() -> None:
    names = {f"p{n}": "" for n in range(39)}
    assert assign_splits(names, seed=1) == assign_splits(dict(reversed(names.items())), seed=1)
    assert assign_splits(names, seed=1) != assign_splits(names, seed=2)


def test_shares_must_be_shares() -> None:
    for shares in ({"train": -1.0, "test": 2.0}, {"train": 0.0}, {}):
        with pytest.raises(UsageError, match="shares"):
            split_counts(3, shares)  # type: ignore[arg-type]
