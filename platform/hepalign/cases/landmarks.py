"""Named points of an image and their CSV files."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError

COLUMNS = ("name", "x", "y", "z")


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points that can be found again in another image of the patient.

    Args:
        names: one a point, unique; the same name is the same anatomical point in every image.
        points_mm: (N, 3), world RAS.

    Raises:
        ValueError: when names and points differ in number, or a name stands twice.
    """

    names: tuple[str, ...]
    points_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        points = np.array(self.points_mm, dtype=np.float64).reshape(-1, 3)
        if len(points) != len(self.names):
            raise ValueError(f"{len(self.names)} names for {len(points)} points")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a landmark's name stands twice")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "points_mm", points)

    def __len__(self) -> int:
        return len(self.names)


def common(a: Landmarks, b: Landmarks) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Names in both, in a's order, with a's points and b's points, each (N, 3)."""
    names = tuple(name for name in a.names if name in b.names)
    return names, *(np.array([m.points_mm[m.names.index(n)] for n in names]).reshape(-1, 3) for m in (a, b))  # type: ignore[return-value]


def format_landmarks(landmarks: Landmarks) -> str:
    """CSV text with the header `name,x,y,z`; millimetres, RAS, to a thousandth."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, point in zip(landmarks.names, landmarks.points_mm, strict=True):
        rows.writerow([name, *(f"{value:.3f}" for value in point)])
    return text.getvalue()


def write_landmarks(landmarks: Landmarks, path: Path) -> None:
    """Write the CSV of `format_landmarks`."""
    path.write_text(format_landmarks(landmarks), encoding="utf-8")


def parse_landmarks(text: str, *, name: str, unnamed: bool = False) -> Landmarks:
    """Landmarks from CSV text with the columns name, x, y, z (mm, RAS).

    Args:
        text: the table.
        name: stands for the file in errors.
        unnamed: the column of names may be missing; the points are then called 1, 2, ….

    Raises:
        BadInputError: `bad_landmarks` for a missing column, a coordinate that is not a finite number, or a name
            that stands twice or is empty.
    """
    # newline=None reads the line ends of every system
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline=None), skipinitialspace=True)
    try:
        rows, columns = list(reader), set(reader.fieldnames or ())
    except csv.Error as error:
        raise BadInputError(f"{name}: is no CSV text", code="bad_landmarks") from error
    if not set(COLUMNS[1:] if unnamed else COLUMNS) <= columns:
        wanted = ",".join(COLUMNS) + (" or x,y,z" if unnamed else "")
        raise BadInputError(f"{name}: the first line must name the columns {wanted}", code="bad_landmarks")
    names: list[str] = []
    points: list[list[float]] = []
    for number, row in enumerate(rows, start=2):
        try:
            point = [float(row[axis]) for axis in COLUMNS[1:]]
        except (TypeError, ValueError):
            point = [np.nan]
        label = (row["name"] or "").strip() if "name" in columns else str(number - 1)
        if not np.isfinite(point).all() or not label or label in names:
            raise BadInputError(
                f"{name}: line {number} needs a name of its own and three finite millimetre coordinates",
                code="bad_landmarks",
            )
        names.append(label)
        points.append(point)
    return Landmarks(tuple(names), np.array(points, dtype=np.float64).reshape(-1, 3))


def read_landmarks(path: Path, *, unnamed: bool = False) -> Landmarks:
    """Landmarks of a CSV file; errors as `parse_landmarks`."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path.name}: landmarks are UTF-8 CSV text", code="bad_landmarks") from error
    return parse_landmarks(text, name=path.name, unnamed=unnamed)
