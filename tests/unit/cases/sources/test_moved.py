"""A CT in another pose: what is known of it is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hepalign.cases.check import check_cohort
from hepalign.cases.cohort import open_cohort
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.motion import rigid_residual_mm
from hepalign.cases.sources.moved import draw_move, moved_ct, moved_mask
from hepalign.cases.sources.public import moved_sarcoma_cohort
from hepalign.errors import UsageError
from hepalign.evaluation.pairs import Patient, score
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.jacobian import fold_mask
from hepalign.transform.warp import outside_grid, warp

GRID = Geometry.from_spacing((40, 36, 30), 5.0, origin_mm=(-100, 30, 10))


def test_a_move_repeats_bends_as_asked_and_never_folds() -> None:
    lengths = []
    for seed in range(4):
        field = draw_move(GRID, seed)
        assert np.array_equal(field.vectors, draw_move(GRID, seed).vectors)
        assert not fold_mask(field).any()
        here = GRID.grid_mm().reshape(-1, 3)
        lengths.append(rigid_residual_mm(here, here + field.vectors.reshape(-1, 3)))
    # the best rigid map takes a part of a smooth bend along
    assert 2.0 < min(lengths) < max(lengths) < PhantomConfig().rigid_residual_mm[1]
    assert not np.array_equal(draw_move(GRID, 0).vectors, draw_move(GRID, 1).vectors)


def test_the_moved_ct_shows_at_x_what_stood_at_x_plus_u() -> None:
    ramp = Volume((GRID.grid_mm() @ np.array([1.0, 2.0, 3.0])).astype(np.float32), GRID)
    field = draw_move(GRID, 3)
    moved = moved_ct(ramp, field)
    assert moved.data.dtype == np.int16
    there = GRID.grid_mm() + field.vectors
    inside = GRID.contains(there.reshape(-1, 3)).reshape(GRID.shape)
    assert 0.3 < inside.mean() < 1
    np.testing.assert_allclose(moved.data[inside], (there @ np.array([1.0, 2.0, 3.0]))[inside], atol=0.6)
    mask = moved_mask(Volume(ramp.as_float() > 150, GRID), field)
    far = inside & (np.abs(there @ np.array([1.0, 2.0, 3.0]) - 150) > 20)
    assert np.array_equal(mask.as_mask()[far], (there @ np.array([1.0, 2.0, 3.0]) > 150)[far])


def test_moved_sarcoma_patients_are_sound_and_their_body_error_is_known(real_data: Path, tmp_path: Path) -> None:
    some = tmp_path / "some" / "sarcoma-mr-ct"
    some.mkdir(parents=True)
    for name in ("STS_002", "STS_015"):
        (some / name).symlink_to(real_data / "sarcoma-mr-ct" / name)
    moved_sarcoma_cohort(tmp_path / "some", tmp_path / "cohort")
    assert check_cohort(tmp_path / "cohort") == []
    cohort = open_cohort(tmp_path / "cohort")
    for case in cohort.cases():
        patient = Patient(cohort, case)
        truth, pct = patient.truth("pMR-pCT"), patient.volume("pct")
        assert truth is not None
        shown = warp(patient.volume("pmr_true_ct"), truth, fill=-1000)
        seen = ~outside_grid(patient.volume("pmr").geometry, truth)
        assert np.abs(shown.as_float() - pct.as_float())[seen].mean() < 20
        scores = score(patient, "pMR-pCT", truth)
        assert scores["body_dense_tre_mm"] == pytest.approx(0, abs=1e-4)
        assert scores["tumour_dense_tre_mm"] == pytest.approx(0, abs=1e-4)
        # the two scanners' tumours were outlined apart
        assert scores["tumour_dice"] > 0.6
        still = DisplacementField(np.zeros_like(truth.vectors), truth.geometry)
        assert score(patient, "pMR-pCT", still)["body_dense_tre_mm"] > 4
        aside = DisplacementField(truth.vectors + np.float32([20, 0, 0]), truth.geometry)
        assert score(patient, "pMR-pCT", aside)["body_skin_mm"] > scores["body_skin_mm"] + 3


def test_no_volumes_no_moved_cohort(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        moved_sarcoma_cohort(tmp_path, tmp_path / "out")
    assert error.value.code == "no_such_file"
