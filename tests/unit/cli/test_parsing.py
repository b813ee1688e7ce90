"""Words of the command line."""

from __future__ import annotations

import pytest

from hepalign.cli.parsing import parse_labels, parse_role_files, parse_shape
from hepalign.errors import UsageError


def test_a_shape_is_three_numbers() -> None:
    assert parse_shape("128,128,96") == (128, 128, 96)


@pytest.mark.parametrize(
    "text", ["128", "1,2,3", "a,b,c", "128,128", "-8,16,16", "²8,16,16", "6400,16,16", "1024,1024,1024"]
)
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shape"):
        parse_shape(text)


def test_labels_become_file_names_of_a_case() -> None:
    assert parse_labels(["pmr:tumour=a.nii", "pct:liver=b=c.nii"]) == {"pmr_tumour": "a.nii", "pct_liver": "b=c.nii"}


@pytest.mark.parametrize("word", ["pmr=a", "mr:liver=a", "pmr:heart=a", "pmr:liver=", "pmr:liver"])
def test_other_labels_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="ROLE:STRUCTURE=FILE"):
        parse_labels([word])


def test_role_files() -> None:
    assert parse_role_files(["pct=points.csv"]) == {"pct": "points.csv"}
    with pytest.raises(UsageError):
        parse_role_files(["ct=points.csv"])
