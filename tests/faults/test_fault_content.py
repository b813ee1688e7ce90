from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hepalign.errors import BadInputError
from hepalign.image.checks import check_ct, check_mr
from hepalign.image.geometry import Geometry
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume

GRID = Geometry.from_spacing((24, 24, 16), 4.0)


def abdomen() -> np.ndarray:
    rng = np.random.default_rng(0)
    x, y, _ = np.moveaxis(GRID.grid_mm() - GRID.centre_mm, -1, 0)
    body = (x / 40) ** 2 + (y / 30) ** 2 < 1
    return np.where(body, 50 + 15 * rng.normal(size=GRID.shape), -1000).astype(np.float32)


def code_of(check: object, data: np.ndarray) -> str | None:
    try:
        check(Volume(data.astype(np.float32), GRID), "ict")  # type: ignore[operator]
    except BadInputError as error:
        return f"{error.status} {error.code}"
    return None


def test_fault_20_mr_sent_as_ct_and_ct_as_mr() -> None:
    mr = np.abs(np.random.default_rng(0).normal(size=GRID.shape)) * 300
    assert code_of(check_ct, mr) == "422 modality_mismatch"
    assert code_of(check_ct, abdomen()) is None
    assert code_of(check_mr, abdomen()) == "422 modality_mismatch"
    assert code_of(check_mr, mr) is None


def test_fault_20_a_ct_without_its_rescale() -> None:
    assert code_of(check_ct, abdomen() + 1024) == "422 modality_mismatch"


def test_fault_20_air_alone_or_noise_of_any_range_is_no_ct() -> None:
    rng = np.random.default_rng(0)
    assert code_of(check_ct, -1000 + rng.normal(size=GRID.shape)) == "422 modality_mismatch"
    assert code_of(check_ct, rng.uniform(-2000, 2000, GRID.shape)) == "422 modality_mismatch"


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_fault_21_ct_padding_is_a_warning(padding: float) -> None:
    data = abdomen()
    data[:3] = padding
    report: list[str] = []
    check_ct(Volume(data, GRID), "pct", report)
    assert report == [f"pct: 12.5% of the voxels are padding ({padding} HU), read as air"]
    clean: list[str] = []
    check_ct(Volume(abdomen(), GRID), "pct", clean)
    assert clean == []


def test_fault_22_constant_volume() -> None:
    for check in (check_ct, check_mr):
        assert code_of(check, np.full(GRID.shape, -1000.0)) == "422 constant_volume"


def test_fault_20_real_volumes_are_told_apart(real_data: Path) -> None:
    cts = [*real_data.glob("liver-ct/*/ct.nii.gz"), *real_data.glob("sarcoma-mr-ct/STS_00*/ct.nii.gz")]
    mrs = [*real_data.glob("chaos-mr/0*/t2.nii.gz"), *real_data.glob("sarcoma-mr-ct/STS_00*/mr_t1.nii.gz")]
    assert len(cts) >= 5
    assert len(mrs) >= 5
    for path in cts:
        check_ct(read_volume(path), "pct")
    for path in mrs:
        check_mr(read_volume(path), "pmr")
        with pytest.raises(BadInputError):
            check_ct(read_volume(path), "pct")
