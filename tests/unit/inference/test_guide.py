from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_pairs import SmallPair, liver_mask, small_pair

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle, load_bundle
from hepalign.inference.guide import guide
from hepalign.inference.inpaint import Inpainted
from hepalign.inference.planner import Plan, load_plan, plan
from hepalign.inference.result import GuideResult, load_previous
from hepalign.inference.result_writer import ResultWriter
from hepalign.inference.untrained import make_untrained_bundle
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.warp import warp


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_untrained_bundle(tmp_path_factory.mktemp("release")))


@pytest.fixture(scope="module")
def pair() -> SmallPair:
    return small_pair(2)


def tumour(pair: SmallPair) -> Volume:
    data = np.zeros(pair.moving.geometry.shape, np.uint8)
    data[30:34, 22:26, 13:18] = 1
    return pair.moving.with_data(data)


def painted(bundle: Bundle, ict: Volume, probe_mask: Volume, prior: Volume | None) -> Inpainted:
    assert prior is not None
    filled = np.where(probe_mask.as_mask(), prior.as_float(), ict.as_float())
    return Inpainted(ict.with_data(filled), probe_mask)


@pytest.fixture(scope="module")
def made(bundle: Bundle, pair: SmallPair) -> Plan:
    labels = {"pct:liver": liver_mask(pair.moving), "pmr:tumour": tumour(pair)}
    return plan(bundle, pair.moving, pair.moving, labels=labels, engine="learned", synthesise=lambda _, pmr: pmr)


@pytest.fixture(scope="module")
def result(bundle: Bundle, made: Plan, pair: SmallPair) -> GuideResult:
    steps: list[tuple[str, float]] = []
    zone = pair.fixed.with_data(np.ones(pair.fixed.geometry.shape, bool))
    found = guide(
        bundle, made, pair.fixed, pair.probe_mask, inpaint=painted, ablation=zone,
        labels={"ict_liver": liver_mask(pair.fixed)}, progress=lambda step, done: steps.append((step, done)),
    )  # fmt: skip
    assert [done for _, done in steps] == sorted(done for _, done in steps)
    assert steps[-1] == ("done", 1.0)
    return found


def test_a_plan_comes_back_as_it_was_saved(made: Plan, tmp_path: Path) -> None:
    made.save(tmp_path)
    names = {"plan.json", "sct.nii.gz", "pmr_on_pct.nii.gz", "field_pct_from_pmr.nii.gz", "pmr.nii.gz", "pct.nii.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"pct_liver.nii.gz", "pmr_tumour.nii.gz"}
    loaded = load_plan(tmp_path)
    assert (
        loaded.digest == made.digest == json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["plan_digest"]
    )
    assert set(loaded.labels) == {"pct_liver", "pmr_tumour"}
    assert loaded.engine == "learned"


def test_a_changed_or_unfinished_plan_is_refused(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        load_plan(tmp_path)
    assert caught.value.code == "plan_missing"
    made.save(tmp_path)
    (tmp_path / "pct.nii.gz").write_bytes((tmp_path / "sct.nii.gz").read_bytes())
    with pytest.raises(BadInputError) as caught:
        load_plan(tmp_path)
    assert caught.value.code == "plan_changed"


def test_the_result_holds_what_the_contract_names(result: GuideResult, made: Plan) -> None:
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["plan_digest"] == made.digest
    assert {"release", "weight_digests", "input_digests", "code_version", "device", "timings", "quality", "convention",
            "warnings", "degraded", "uncertainty_mm", "margins", "tumour_in_hole", "outside_grid_fraction",
            "research_use_only"} <= summary.keys()  # fmt: skip
    assert {"status", "reasons", "folding_fraction", "jacobian_min", "jacobian_max", "inverse_consistency_mm",
            "similarity_before", "similarity_after", "liver_dice", "method"} <= result.quality.keys()  # fmt: skip
    assert "compute_s" in result.timings
    assert set(result.uncertainty_mm) == {"tumour 1"}
    assert result.margins["tumour 1"]["10_mm"] == pytest.approx(1.0)


def test_labels_images_and_field_follow_the_truth(result: GuideResult, pair: SmallPair) -> None:
    assert pair.error_mm(result.field_ict_from_pct) < 2.0
    assert result.labels_on_ict is not None
    carried = result.labels_on_ict.volume.data
    # the plan maps the MR onto itself, so the MR's tumour moves as the CT does
    centre = np.argwhere(carried == 2).mean(0)
    assert np.abs(centre - np.argwhere(tumour(pair).as_mask()).mean(0)).max() < 4
    hole = pair.probe_mask.as_mask()
    np.testing.assert_array_equal(result.inpct.as_float()[~hole], pair.fixed.as_float()[~hole])
    # `painted` fills with the registered pCT: what is left of it leans towards the iCT, and somewhere it does
    fill, seen = result.pct_on_ict.as_float()[hole], pair.fixed.as_float()[hole]
    drawn = result.inpct.as_float()[hole] - fill
    assert np.abs(drawn).max() > 1
    assert (drawn * np.sign(np.clip(seen, -250, 450) - np.clip(fill, -250, 450)) > -0.01).all()


def test_every_file_is_written_and_a_next_guide_starts_from_them(
    result: GuideResult, bundle: Bundle, made: Plan, pair: SmallPair, tmp_path: Path
) -> None:
    result.save(tmp_path, h5=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "inpct.nii.gz", "inpainted_mask.nii.gz", "pct_on_ict.nii.gz", "pmr_on_ict.nii.gz", "labels_on_ict.nii.gz",
        "sct_on_ict.nii.gz",
        "field_ict_from_pct.nii.gz", "field_ict_from_pmr.nii.gz", "field_ict_from_pct.h5", "field_ict_from_pmr.h5",
        "result.json", "overview.png",
    }  # fmt: skip
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(read_nifti(tmp_path / "inpainted_mask.nii.gz").as_mask(), pair.probe_mask.as_mask())
    report: list[str] = []
    previous = load_previous(tmp_path, made, report=report)
    assert report == []
    again = guide(bundle, made, pair.fixed, pair.probe_mask, engine="fast", previous=previous, inpaint=painted)
    assert again.quality["method"] == "previous+short-refine"
    assert pair.error_mm(again.field_ict_from_pct) < 2.0


def test_a_rejected_result_and_one_of_another_plan_are_no_start(
    result: GuideResult, made: Plan, tmp_path: Path
) -> None:
    report: list[str] = []
    result.save(tmp_path)
    assert load_previous(tmp_path, replace(made, labels={}), report=report) is None
    summary = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    summary["quality"]["status"] = "reject"
    (tmp_path / "result.json").write_text(json.dumps(summary), encoding="utf-8")
    assert load_previous(tmp_path, made, report=report) is None
    assert len(report) == 2


def test_a_plan_in_review_and_a_tumour_that_is_not_in_the_ict_are_never_accepted(
    bundle: Bundle, made: Plan, pair: SmallPair
) -> None:
    away = np.eye(4)
    away[0, 3] = 900.0
    geometry = Geometry(pair.moving.geometry.shape, away @ pair.moving.geometry.affine)
    doubtful = replace(
        made,
        labels={"pmr_tumour": Volume(tumour(pair).data, geometry)},
        quality={"status": "review", "reasons": ["ANTs reports no quality"], "method": "ants-syn"},
    )
    zone = pair.fixed.with_data(np.ones(pair.fixed.geometry.shape, bool))
    found = guide(bundle, doubtful, pair.fixed, pair.probe_mask, engine="fast", inpaint=painted, ablation=zone)
    assert found.quality["status"] in ("review", "reject")
    reasons = str(found.quality["reasons"])
    assert "the plan is to be reviewed: ANTs reports no quality" in reasons
    assert "no voxel of tumour 1 lies in the iCT" in reasons
    assert found.margins == found.uncertainty_mm == {}


def test_the_error_at_a_tumour_drawn_on_the_mr_holds_the_plans(bundle: Bundle, made: Plan, pair: SmallPair) -> None:
    def expected_mm(role: str, **quality: float) -> dict[str, float]:
        given = {"status": "accept", "reasons": [], "method": "given", **quality}
        changed = replace(made, labels={role: tumour(pair)}, quality=given)
        found = guide(bundle, changed, pair.fixed, pair.probe_mask, engine="fast", inpaint=painted)
        return dict(found.uncertainty_mm)

    on_ct, on_mr = (expected_mm(role, expected_error_mm=3.0)["tumour 1"] for role in ("pct_tumour", "pmr_tumour"))
    # the plan's field is not quite the identity that it should be, so the tumour lies a little elsewhere
    assert on_mr == pytest.approx(np.hypot(on_ct, 3.0), abs=0.05)
    # a plan that knows nothing of its own error (ANTs): no number rather than one that is too good
    assert expected_mm("pmr_tumour") == {}


def test_parts_are_kept_while_it_computes_and_are_the_results(bundle: Bundle, made: Plan, pair: SmallPair) -> None:
    kept: list[tuple[str, Volume | DisplacementField]] = []
    steps: dict[str, int] = {}
    found = guide(
        bundle, made, pair.fixed, pair.probe_mask, engine="fast", inpaint=painted,
        keep=lambda name, part: kept.append((name, part)), progress=lambda step, _: steps.setdefault(step, len(kept)),
    )  # fmt: skip
    parts = found.parts()
    assert [name for name, part in kept if parts[name] is part] == [name for name, _ in kept]
    assert {"field_ict_from_pct", "field_ict_from_pmr", "inpct", "pmr_on_ict"} <= {name for name, _ in kept}
    assert (steps["inpaint"], steps["warp"]) == (1, 2)
    carried = warp(made.sct, found.field_ict_from_pmr).as_float()
    np.testing.assert_allclose(found.sct_on_ict.as_float(), carried, atol=1e-2)


@pytest.mark.parametrize(("threads", "cores"), [(1, 2), (2, 2)])
def test_parts_are_packed_meanwhile_where_a_core_is_left(
    result: GuideResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    path = tmp_path / "inpct.nii.gz"
    with ResultWriter(tmp_path) as writer:
        writer.keep("inpct", result.inpct)
        end = time.monotonic() + 10
        while threads < cores and not path.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
    assert path.exists() == (threads < cores)


def test_a_part_that_cannot_be_written_leaves_no_result(
    result: GuideResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hepalign.inference.result_writer.write_field", full)
    with ResultWriter(tmp_path) as writer:
        writer.keep("field_ict_from_pct", result.field_ict_from_pct)
        with pytest.raises(OSError, match="No space"):
            writer.finish(result)
    assert not (tmp_path / "result.json").exists()


def test_a_folder_without_a_result_is_no_previous_one(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        load_previous(tmp_path, made, report=[])
    assert caught.value.code == "previous_missing"


def test_a_mask_on_another_grid_is_refused(bundle: Bundle, made: Plan, pair: SmallPair) -> None:
    small = Volume(np.ones((4, 4, 4), bool), pair.fixed.geometry.crop((0, 0, 0), (4, 4, 4)))
    with pytest.raises(BadInputError) as caught:
        guide(bundle, made, pair.fixed, small, inpaint=painted)
    assert caught.value.code == "probe_mask_grid"
