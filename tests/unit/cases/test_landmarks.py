from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepalign.cases.landmarks import Landmarks, common, parse_landmarks, read_landmarks, write_landmarks
from hepalign.errors import BadInputError


def test_round_trip(tmp_path: Path) -> None:
    landmarks = Landmarks(("portal, first fork", "b"), np.array([[1.5, -2.25, 3], [0, 0, -1000]]))
    write_landmarks(landmarks, tmp_path / "pct_landmarks.csv")
    back = read_landmarks(tmp_path / "pct_landmarks.csv")
    assert back.names == landmarks.names
    np.testing.assert_allclose(back.points_mm, landmarks.points_mm, atol=5e-4)


def test_the_line_ends_of_every_system() -> None:
    for end in ("\n", "\r\n", "\r"):
        assert parse_landmarks(f"name,x,y,z{end}a,1,2,3{end}", name="p.csv").names == ("a",)


def test_columns_may_stand_in_any_order_and_others_are_ignored() -> None:
    found = parse_landmarks("\ufeffz,name,note,y,x\n3,a,hello,2,1\n", name="p.csv")
    assert found.points_mm.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "text",
    ["", "name,x,y\na,1,2\n", "name,x,y,z\na,1,2,nan\n", "name,x,y,z\na,1,2\n", "name,x,y,z\n,1,2,3\n",
     "name,x,y,z\na,1,2,3\na,4,5,6\n", "name,x,y,z\na,1,2,three\n"],
)  # fmt: skip
def test_bad_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadInputError, match=r"^p\.csv: ") as error:
        parse_landmarks(text, name="p.csv")
    assert error.value.code == "bad_landmarks"


def test_points_without_names_are_numbered_where_names_do_not_matter() -> None:
    found = parse_landmarks("x,y,z\n1,2,3\n4,5,6\n", name="p.csv", unnamed=True)
    assert found.names == ("1", "2")
    assert found.points_mm.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert parse_landmarks("name,x,y,z\ntip,1,2,3\n", name="p.csv", unnamed=True).names == ("tip",)
    for text, unnamed in (("x,y,z\n1,2,3\n", False), ("x,y\n1,2\n", True), ("name,x,y,z\n,1,2,3\n", True)):
        with pytest.raises(BadInputError, match=r"^p\.csv: "):
            parse_landmarks(text, name="p.csv", unnamed=unnamed)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for document in (text, f"name,x,y,z\n{text}"):
        with contextlib.suppress(BadInputError):
            assert np.isfinite(parse_landmarks(document, name="p.csv").points_mm).all()


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadInputError, match="UTF-8"):
        read_landmarks(tmp_path / "p.csv")


def test_common_pairs_points_by_name() -> None:
    a = Landmarks(("x", "y", "z"), np.arange(9.0).reshape(3, 3))
    b = Landmarks(("z", "w", "x"), np.arange(9.0).reshape(3, 3) + 100)
    names, of_a, of_b = common(a, b)
    assert names == ("x", "z")
    assert of_a[:, 0].tolist() == [0, 6]
    assert of_b[:, 0].tolist() == [106, 100]


def test_common_of_nothing_is_empty() -> None:
    _, of_a, of_b = common(Landmarks(("a",), np.zeros((1, 3))), Landmarks((), np.zeros((0, 3))))
    assert of_a.shape == of_b.shape == (0, 3)


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="twice"):
        Landmarks(("a", "a"), np.zeros((2, 3)))
