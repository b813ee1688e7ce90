"""Images and masks that cannot be used as they are, over HTTP against the running server: FAULTS 3-22, 35-39."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from nifti_bytes import AFFINE, gz, gz_of_zeros, nifti1, nifti2, voxels
from served import Served, nifti_bytes, problem

from hepalign.image.geometry import Geometry
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume

OFFSET, SLOPE, CODES, QUATERNION, SROW = 108, 112, 252, 256, 280


@pytest.fixture(scope="module")
def case(served: Served) -> str:
    with served.client() as client:
        case = client.open_case()
        client.upload(case, "ict", served.images["ict"])
    return case


@pytest.fixture
def nothing_left(served: Served, case: str) -> Iterator[None]:
    def files() -> list[Path]:
        return sorted(path for path in (served.data_folder / "cases" / case).rglob("*") if path.is_file())

    before = files()
    yield
    assert files() == before
    assert not list((served.data_folder / "incoming").iterdir())


def ct(shape: tuple[int, int, int] = (20, 20, 12)) -> np.ndarray:
    """A body of soft tissue in air."""
    data = np.full(shape, -1000, np.int16)
    inside = tuple(n - 6 for n in shape[:2])
    tissue = np.random.default_rng(0).normal(50, 15, (*inside, shape[2]))
    data[3:-3, 3:-3] = tissue.astype(np.int16)
    return data


def srow(affine: np.ndarray) -> dict[int, tuple[str, tuple[float, ...]]]:
    return {SROW: ("12f", tuple(affine[:3].ravel().tolist()))}


def at(row: int, column: int, value: float) -> np.ndarray:
    changed = AFFINE.copy()
    changed[row, column] = value
    return changed


def test_fault_03_gigabytes_after_the_voxels(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "pct", gz_of_zeros(200, nifti1())), 422, "trailing_data")


def test_fault_06_dims_32767_cubed(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "pct", nifti1(dim=(3, 32767, 32767, 32767))), 413, "too_large")


@pytest.mark.parametrize("dim", [(3, 5, 0, 7), (3, 5, -6, 7), (9, 5, 6, 7)])
def test_fault_07_impossible_dimensions(served: Served, case: str, nothing_left: None, dim: tuple[int, ...]) -> None:
    problem(served.put(case, "pct", nifti1(dim=dim)), 422, "bad_header")


@pytest.mark.parametrize(("offset", "code"), [(math.nan, "bad_header"), (1e6, "truncated")])
def test_fault_08_vox_offset(served: Served, case: str, nothing_left: None, offset: float, code: str) -> None:
    problem(served.put(case, "pct", nifti1(patches={OFFSET: ("f", (offset,))})), 422, code)


@pytest.mark.parametrize(
    ("affine", "code"),
    [
        (at(0, 0, math.nan), "bad_affine"),
        (at(2, 3, math.inf), "bad_affine"),
        (AFFINE @ np.diag([1.0, 0, 1, 1]), "singular_affine"),
        (at(1, 2, 0.3), "sheared_affine"),
        (AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1]), "implausible_grid"),
        (AFFINE @ np.diag([1e3, 1e3, 1e3, 1]), "implausible_grid"),
    ],
    ids=["nan", "inf", "singular", "sheared", "tiny", "huge"],
)
def test_fault_09_10_14_affine(served: Served, case: str, nothing_left: None, affine: np.ndarray, code: str) -> None:
    problem(served.put(case, "pct", nifti1(patches=srow(affine))), 422, code)


def test_fault_11_no_orientation(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "pct", nifti1(patches={CODES: ("2h", (0, 0))})), 422, "no_orientation")


def test_fault_12_sform_is_not_qform(served: Served, case: str) -> None:
    content = nifti1(ct(), patches={CODES: ("2h", (1, 1)), QUATERNION: ("6f", (0, 0, 0, -10, 20, -35))})
    problem(served.put(case, "pct", content), 422, "orientation_conflict")
    chosen = served.call("PUT", f"/v1/cases/{case}/images/pct?orientation=qform", content=content)
    assert chosen.status_code == 201, chosen.text


def test_fault_13_negative_determinant(served: Served, case: str, tmp_path: Path) -> None:
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    assert served.put(case, "pct", gz(nifti1(ct(), affine=mirrored))).status_code == 201
    back = served.call("GET", f"/v1/cases/{case}/images/pct")
    (tmp_path / "pct.nii.gz").write_bytes(back.content)
    np.testing.assert_allclose(read_volume(tmp_path / "pct.nii.gz").geometry.affine, mirrored, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (nifti1(dim=(4, 5, 6, 7, 2)), "not_3d"),
        (nifti1(patches={70: ("h", (128,))}), "unsupported_voxels"),
        (nifti1(patches={70: ("h", (32,))}), "unsupported_voxels"),
    ],
    ids=["4-D", "RGB", "complex"],
)
def test_fault_15_no_scalar_volume(served: Served, case: str, nothing_left: None, content: bytes, code: str) -> None:
    problem(served.put(case, "pct", content), 422, code)


def test_fault_16_nonfinite_voxels_and_scale(served: Served, case: str, nothing_left: None) -> None:
    data = voxels("f4")
    data[2, 3, 4] = math.nan
    problem(served.put(case, "pct", nifti1(data)), 422, "nonfinite_voxels")
    problem(served.put(case, "pct", nifti1(patches={SLOPE: ("f", (math.inf,))})), 422, "nonfinite_scale")


def test_fault_19_big_endian_and_nifti_2(served: Served, case: str) -> None:
    for content in (nifti1(ct(), order=">"), nifti2(ct()), nifti2(ct(), order=">")):
        answer = served.put(case, "pct", gz(content))
        assert answer.status_code == 201, answer.text
        assert answer.json()["shape"] == [20, 20, 12]


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_fault_21_ct_padding(served: Served, case: str, padding: int) -> None:
    data = ct()
    data[:2] = padding
    answer = served.put(case, "pct", gz(nifti1(data)))
    assert answer.status_code == 201
    assert any("padding" in warning for warning in answer.json()["warnings"])


def mask_bytes(served: Served, folder: Path, origin_mm: tuple[float, float, float] | None = None) -> bytes:
    """The case's own probe mask on a cropped grid, or drawn in another frame."""
    mask = read_volume(served.images["ict-probe-mask"])
    data = np.asarray(mask.data).astype(np.uint8)
    if origin_mm is None:
        return nifti_bytes(Volume(data[2:, 2:, 1:], mask.geometry.crop((2, 2, 1), (38, 38, 31))), folder)
    away = Geometry.from_spacing(data.shape, mask.geometry.spacing_mm[0], origin_mm=origin_mm)
    return nifti_bytes(Volume(data, away), folder)


def put_mask(served: Served, case: str, shape: dict[str, object]) -> httpx2.Response:
    return served.put(case, "ict-probe-mask", json.dumps(shape).encode())


def test_fault_35_mask_on_another_grid(served: Served, case: str, tmp_path: Path) -> None:
    answer = served.put(case, "ict-probe-mask", mask_bytes(served, tmp_path))
    assert answer.status_code == 201, answer.text
    assert any("resampled" in warning for warning in answer.json()["warnings"])


def test_fault_36_mask_in_another_frame(served: Served, case: str, tmp_path: Path, nothing_left: None) -> None:
    content = mask_bytes(served, tmp_path, (900, 900, 900))
    for role in ("ict-probe-mask", "ict-liver"):
        problem(served.put(case, role, content), 422, "frame_mismatch")


def test_fault_37_probe_mask_empty_or_outside(served: Served, case: str, tmp_path: Path, nothing_left: None) -> None:
    ict = read_volume(served.images["ict"])
    empty = nifti_bytes(Volume(np.zeros(ict.geometry.shape, np.uint8), ict.geometry), tmp_path)
    problem(served.put(case, "ict-probe-mask", empty), 422, "empty_probe_mask")
    outside = {"kind": "box", "low_mm": [700, 700, 700], "high_mm": [720, 720, 720]}
    problem(put_mask(served, case, outside), 422, "empty_probe_mask")


def test_fault_38_probe_mask_over_a_fifth_of_the_body(served: Served, case: str, nothing_left: None) -> None:
    everywhere = {"kind": "box", "low_mm": [-500, -500, -500], "high_mm": [500, 500, 500]}
    problem(put_mask(served, case, everywhere), 422, "probe_mask_too_large")


@pytest.mark.parametrize("points", [[[0, 0], [20, 20], [20, 0], [0, 20]], [[0, 0], [20, math.nan], [20, 0]]])
def test_fault_39_bad_polygon(served: Served, case: str, nothing_left: None, points: list[list[float]]) -> None:
    problem(put_mask(served, case, {"kind": "polygon", "points_mm": points, "z_mm": [0, 10]}), 422, "bad_probe_mask")
