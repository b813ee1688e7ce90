from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pairs import SmallPair, small_pair

from hepalign.errors import UsageError
from hepalign.image.nifti import read_nifti
from hepalign.inference.bundle import Bundle, load_bundle
from hepalign.inference.pair import body_box
from hepalign.inference.register import Clock, register
from hepalign.inference.untrained import make_untrained_bundle
from hepalign.inference.workgrid import on_work_grid, soft_tissue, work_geometry
from hepalign.transform.files import read_field
from hepalign.transform.jacobian import fold_mask


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_untrained_bundle(tmp_path_factory.mktemp("release")))


@pytest.fixture(scope="module")
def pair() -> SmallPair:
    return small_pair(1)


def test_refinement_finds_the_warp_without_a_fold_and_says_how(bundle: Bundle, pair: SmallPair, tmp_path: Path) -> None:
    done = register(bundle, pair.moving, pair.fixed, probe_mask=pair.probe_mask, moving_label=pair.liver)
    assert pair.error_mm(done.field) < 0.4 * pair.error_mm(done.field.identity(pair.fixed.geometry))
    assert not fold_mask(done.field).any()
    assert done.method == "affine+coarse+network+refine"
    assert done.quality["similarity_after"] > done.quality["similarity_before"]
    done.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "field.nii.gz", "warped.nii.gz", "warped_label.nii.gz", "result.json",
    }  # fmt: skip
    summary = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert summary["research_use_only"]
    assert summary["quality"]["folding_fraction"] == 0.0
    np.testing.assert_allclose(read_field(tmp_path / "field.nii.gz").vectors, done.field.vectors, atol=1e-4)
    assert read_nifti(tmp_path / "warped_label.nii.gz").as_mask().any()
    # another registration into the same folder: nothing of this one stays beside it
    replace(done, quality={**done.quality, "status": "reject"}).save(tmp_path)
    assert not (tmp_path / "warped_label.nii.gz").exists()


def test_the_same_call_gives_the_same_field(bundle: Bundle, pair: SmallPair) -> None:
    first, second = (register(bundle, pair.moving, pair.fixed, engine="fast") for _ in range(2))
    np.testing.assert_array_equal(first.field.vectors, second.field.vectors)


def test_a_warm_start_goes_on_from_the_previous_field(bundle: Bundle, pair: SmallPair) -> None:
    first = register(bundle, pair.moving, pair.fixed, probe_mask=pair.probe_mask)
    again = register(bundle, pair.moving, pair.fixed, probe_mask=pair.probe_mask, engine="fast", initial=first.field)
    assert again.method == "previous+short-refine"
    assert pair.error_mm(again.field) == pytest.approx(pair.error_mm(first.field), abs=0.2)


def test_an_mr_is_registered_by_its_own_structure(bundle: Bundle, pair: SmallPair) -> None:
    hu = pair.moving.as_float()
    # an MR shows fluid bright and bone dark, in whatever unit
    mr = pair.moving.with_data(np.where(hu > -500, 400 - np.clip(hu, -150, 300), 0).astype(np.float32))
    of_ct = register(bundle, pair.moving, pair.fixed, probe_mask=pair.probe_mask)
    of_mr = register(bundle, mr, pair.fixed, probe_mask=pair.probe_mask, modality="mr")
    of_louder = register(
        bundle, mr.with_data(7.0 * mr.as_float()), pair.fixed, probe_mask=pair.probe_mask, modality="mr"
    )
    assert pair.error_mm(of_mr.field) < 1.3 * pair.error_mm(of_ct.field)
    assert pair.error_mm(of_louder.field) == pytest.approx(pair.error_mm(of_mr.field), abs=0.2)


def test_a_spent_budget_still_gives_a_field(bundle: Bundle, pair: SmallPair) -> None:
    done = register(bundle, pair.moving, pair.fixed, budget_s=0.0)
    assert np.isfinite(done.field.vectors).all()
    assert done.method == "affine+coarse+network"
    assert done.warnings == ("the budget was used up before the refinement: the field is not refined",)


def test_a_refinement_that_its_budget_ends_says_so(bundle: Bundle, pair: SmallPair, monkeypatch: Any) -> None:
    over = iter([False, True])
    monkeypatch.setattr(Clock, "is_over", lambda self: next(over))
    done = register(bundle, pair.moving, pair.fixed, engine="fast", budget_s=100.0)
    assert done.method.endswith("short-refine")
    assert done.warnings == ("the budget ended the refinement early",)


def test_an_unknown_engine_is_refused(bundle: Bundle, pair: SmallPair) -> None:
    with pytest.raises(UsageError) as caught:
        register(bundle, pair.moving, pair.fixed, engine="quick")  # type: ignore[arg-type]
    assert caught.value.code == "unknown_engine"


def test_the_bodys_box_holds_the_body(pair: SmallPair) -> None:
    unit = soft_tissue(on_work_grid(pair.fixed, work_geometry(pair.fixed.geometry)))
    box = body_box(unit)
    inside = unit[(..., *box)]
    assert all(n % 16 == 0 for n in inside.shape[2:])
    assert int((inside > -0.6).sum()) == int((unit > -0.6).sum())
