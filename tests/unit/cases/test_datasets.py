"""The batches of each stage, against the toy cohort's known truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_cases import toy_case, toy_cohort

from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.datasets import (
    EpochLoader,
    InpaintingData,
    RegistrationData,
    SynthesisData,
    inpainting_loader,
    registration_loader,
    synthesis_loader,
)
from hepalign.cases.registration_data import validated_by
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError
from hepalign.transform.warp import warp_tensor

SYNTHESIS = SynthesisData(patch=(24, 24, 16), spacing_mm=4, samples_per_case=2)
INPAINTING = InpaintingData(patch=(32, 32, 32), spacing_mm=4, samples_per_case=3)
REGISTRATION = RegistrationData(shape=(36, 32, 28), spacing_mm=4)
Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("toy")
    toy_cohort(folder, cases=5)
    return open_cohort(folder)


def interior(image: Tensor) -> Tensor:
    """Voxels of the body that lie two voxels below the skin."""
    return -torch.nn.functional.max_pool3d(-image, 5, stride=1, padding=2) > -0.95


def loaders(cohort: Cohort, **words: int) -> Iterator[EpochLoader]:
    given = {"seed": 1, "epoch": 0} | words
    yield synthesis_loader([cohort], SYNTHESIS, "train", **given)
    yield inpainting_loader([cohort], INPAINTING, "train", **given)
    yield registration_loader([cohort], REGISTRATION, "train", **given)


def test_shapes_kinds_and_scales(cohort: Cohort) -> None:
    shapes = {"mr": (24, 24, 16), "image": (32, 32, 32), "fixed": (36, 32, 28)}
    for loader in loaders(cohort):
        for batch in loader:
            (shape,) = (shapes[name] for name in shapes if name in batch)
            for name, value in batch.items():
                if name == "case_id":
                    assert value[0].startswith("case-")
                elif name.startswith("has_"):
                    assert value.shape == (1,)
                    assert value.dtype == torch.bool
                else:
                    assert value.shape == (1, 3 if name == "field" else 1, *shape)
                    assert value.dtype == torch.float32
                    assert torch.isfinite(value).all()
                    assert name == "field" or value.abs().max() <= 1
                    if name.endswith(("mask", "liver", "body")):
                        assert set(value.unique().tolist()) <= {0.0, 1.0}


def test_batches_are_the_same_for_any_number_of_workers(cohort: Cohort) -> None:
    config = INPAINTING.model_copy(update={"samples_per_case": 1})
    one, two = (
        list(inpainting_loader([cohort], config.model_copy(update={"workers": n}), "train", seed=1, epoch=2))
        for n in (0, 1)
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a["case_id"] == b["case_id"]
        assert all(torch.equal(a[k], b[k]) for k in ("image", "mask", "prior", "body"))


def test_every_epoch_is_different_and_repeats_exactly(cohort: Cohort) -> None:
    for name, first, again, other in zip(
        ("mr", "image", "fixed"), loaders(cohort), loaders(cohort), loaders(cohort, epoch=1), strict=True
    ):
        images = [torch.cat([batch[name] for batch in loader]) for loader in (first, again, other)]
        assert torch.equal(images[0], images[1])
        assert not torch.equal(images[0], images[2])


def test_no_patient_is_in_two_splits(cohort: Cohort) -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for batch in registration_loader([cohort], REGISTRATION, split, seed=0, epoch=0):
            for case_id in batch["case_id"]:
                seen.setdefault(case_id, set()).add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    assert len(seen) == 5


def test_synthesis_trains_on_strangers_and_validates_on_the_true_ct(cohort: Cohort) -> None:
    # turned and shifted alike; contrast, shading and noise, which are the MR's alone, are left out
    calm = SYNTHESIS.model_copy(update={"contrast": 0.0, "bias": 0.0, "noise": 0.0})
    for batch in synthesis_loader([cohort], calm, "train", seed=0, epoch=0):
        assert batch["has_true_ct"].all()
        inside = batch["body"] > 0.5
        assert np.corrcoef(batch["mr"][inside].numpy(), batch["true_ct"][inside].numpy())[0, 1] > 0.9
        # the other patient's CT is not this MR's
        assert not torch.equal(batch["ct"], batch["true_ct"])
    for batch in synthesis_loader([cohort], SYNTHESIS, "val", seed=0, epoch=0):
        assert torch.equal(batch["ct"], batch["true_ct"])
        inside = batch["body"] > 0.5
        # the toy MR is a linear map of its CT
        mr, ct = batch["mr"][inside].numpy(), batch["true_ct"][inside].numpy()
        assert np.corrcoef(mr, ct)[0, 1] > 0.95


def test_an_inpainting_hole_lies_in_the_patch_and_the_prior_helps(cohort: Cohort) -> None:
    calm = INPAINTING.model_copy(
        update={"noise": 0.0, "prior_warp_mm": 0.5, "prior_dropout": 0.0, "prior_contrast": 0.0}
    )
    holes = []
    for batch in inpainting_loader([cohort], calm, "train", seed=0, epoch=0):
        hole = batch["mask"] < 0.5
        holes.append(hole.float().mean().item())
        inside = hole & interior(batch["image"])
        error = (batch["prior"] - batch["image"])[inside].abs().mean()
        spread = (batch["image"][inside] - batch["image"][inside].mean()).abs().mean()
        assert error < 0.5 * spread
    assert min(holes) > 0.001
    assert max(holes) < 0.6


def test_the_iCTs_prior_is_the_warped_pct(cohort: Cohort) -> None:  # noqa: N802 - the field's word
    config = INPAINTING.model_copy(
        update={"targets": ("ict_clean",), "prior_warp_mm": 0.0, "prior_dropout": 0.0, "noise": 0.0, "case_mask": 1.0}
    )
    for batch in inpainting_loader([cohort], config, "val", seed=0, epoch=0):
        inside = batch["body"] > 0.5
        # ict_clean is the pCT moved by one whole voxel
        assert (batch["prior"] - batch["image"])[inside].abs().median() < 0.01
        assert (batch["mask"] < 0.5).any()


def test_a_dropped_prior_is_minus_one(cohort: Cohort) -> None:
    config = INPAINTING.model_copy(update={"prior_dropout": 1.0})
    assert all((batch["prior"] == -1).all() for batch in inpainting_loader([cohort], config, "train", seed=0, epoch=0))
    assert all((batch["prior"] > -1).any() for batch in inpainting_loader([cohort], config, "val", seed=0, epoch=0))


@pytest.mark.parametrize("pair", ["ict_from_pct", "pct_from_ict", "pct_from_pmr", "single"])
@pytest.mark.parametrize("prealign", [True, False])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_true_field_brings_moving_onto_fixed(cohort: Cohort, pair: str, prealign: bool, split: str) -> None:
    config = REGISTRATION.model_copy(
        update={"pairs": (pair,), "prealign": prealign, "noise": 0.0, "contrast": 0.0, "warp_mm": 10.0}
    )
    batch: Batch = next(iter(registration_loader([cohort], config, split, seed=0, epoch=0)))  # type: ignore[arg-type]
    assert batch["has_field"].all()
    warped = warp_tensor(batch["moving"], batch["field"])
    # away from the skin, where half a voxel is a thousand HU, and where the moving point lies inside the grid
    inside = (
        interior(batch["fixed"])
        & (batch["fixed_mask"] > 0.5)
        & (warp_tensor(torch.ones_like(warped), batch["field"], padding="zeros") > 0.99)
    )
    before = (batch["moving"] - batch["fixed"])[inside].abs().mean()
    after = (warped - batch["fixed"])[inside].abs().mean()
    assert after < 0.3 * before
    liver = warp_tensor(batch["moving_liver"], batch["field"])
    overlap = 2 * (liver * batch["fixed_liver"]).sum() / (liver.sum() + batch["fixed_liver"].sum())
    assert overlap > 0.85
    assert batch["has_liver"].all()


def test_prealignment_leaves_only_the_affine_stages_error(cohort: Cohort) -> None:
    still = {"affine_jitter_mm": 0.0, "affine_jitter_deg": 0.0, "pairs": ("ict_from_pct",)}
    for prealign, size in ((True, 0.0), (False, np.sqrt(2))):
        config = REGISTRATION.model_copy(update=still | {"prealign": prealign})
        (batch,) = registration_loader([cohort], config, "val", seed=0, epoch=0)
        # the toy truth is a shift of one voxel along two axes
        assert batch["field"].norm(dim=1).mean().item() == pytest.approx(size, abs=2e-3)


def test_the_probe_is_masked_and_mended(cohort: Cohort) -> None:
    config = REGISTRATION.model_copy(update={"pairs": ("ict_from_pct",)})
    (batch,) = registration_loader([cohort], config, "val", seed=0, epoch=0)
    hidden = batch["fixed_mask"] < 0.5
    assert hidden.sum() >= 60
    # the toy probe is 3000 HU, which the window would show as 1
    assert batch["fixed"][hidden].max() < 0.9


def test_pairs_without_a_truth_say_so(tmp_path: Path) -> None:
    volumes = toy_case(0)["volumes"]
    CohortWriter(tmp_path).add("real", "p", volumes={name: volumes[name] for name in ("pct", "ict")}, split="train")
    CohortWriter(tmp_path).finish()
    config = REGISTRATION.model_copy(update={"pairs": ("ict_from_pct",)})
    (batch,) = registration_loader([open_cohort(tmp_path)], config, "train", seed=0, epoch=0)
    assert not batch["has_field"].any()
    assert not batch["has_liver"].any()
    assert not batch["field"].any()


def test_validation_keeps_to_the_pairs_that_it_can_judge(tmp_path: Path) -> None:
    given = toy_case(0)
    names = {"images": ("pct", "ict"), "livers": ("pct", "ict", "pct_liver", "ict_liver")}
    config = REGISTRATION.model_copy(update={"pairs": ("ict_from_pct", "single")})
    for number, judge in enumerate(("images", "livers", "truth"), start=1):
        writer = CohortWriter(tmp_path)
        volumes = {name: given["volumes"][name] for name in names.get(judge, names["livers"])}
        fields = {name: given["fields"][name] for name in ("truth_field_ict_from_pct",)} if judge == "truth" else {}
        writer.add(judge, judge, volumes=volumes, fields=fields, split="val")
        writer.finish()
        cohort = open_cohort(tmp_path)
        assert len(cohort.cases("val")) == number
        assert validated_by([cohort], config) == judge
        cases = [
            case for batch in registration_loader([cohort], config, "val", seed=0, epoch=0) for case in batch["case_id"]
        ]
        assert cases == [judge]


def test_beyond_the_scan_the_fixed_image_is_masked(tmp_path: Path) -> None:
    volumes = toy_case(0)["volumes"]
    box = {"scanned_mm": {"pct": [[-70, -60, -20], [86, 80, 30]]}}
    writer = CohortWriter(tmp_path)
    writer.add("short", "p", volumes={"pct": volumes["pct"]}, attributes=box, split="val")
    writer.finish()
    config = RegistrationData(shape=(36, 32, 28), spacing_mm=4, pairs=("single",), warp_mm=0)
    (batch,) = registration_loader([open_cohort(tmp_path)], config, "val", seed=0, epoch=0)
    planes = batch["fixed_mask"].amax(dim=(0, 1, 2, 3))
    assert planes.sum().item() == pytest.approx(50 / 4, abs=1)


def test_cohorts_may_lack_what_a_stage_needs(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path)
    writer.add("only-mr", "p", volumes={"pmr": toy_case(0)["volumes"]["pmr"]}, split="train")
    writer.finish()
    cohort = open_cohort(tmp_path)
    for make, config in (
        (synthesis_loader, SYNTHESIS),
        (inpainting_loader, INPAINTING),
        (registration_loader, REGISTRATION),
    ):
        with pytest.raises(BadInputError) as error:
            make([cohort], config, "train", seed=0, epoch=0)  # type: ignore[operator]
        assert error.value.code == "no_cases"
