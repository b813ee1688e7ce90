"""The evaluation's plumbing on a tiny cohort: rows, resume, failures, files, the page."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.landmarks import Landmarks
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError, UsageError
from hepalign.evaluation import evaluate as evaluating
from hepalign.evaluation import methods as solving
from hepalign.evaluation import provenance
from hepalign.evaluation import unit as working
from hepalign.evaluation import variants as varying
from hepalign.evaluation.methods import Answer, Method, Running, Solved, identity_method
from hepalign.evaluation.pairs import PAIRS, Patient
from hepalign.evaluation.variants import TRAINED_ABLATIONS, Absent
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import translation

GRID = Geometry.from_spacing((20, 20, 16), 6.0, origin_mm=(-57, -57, -45))
# where each image's anatomy stands against the pCT's, mm
PLACE_MM = {"pct": np.zeros(3), "pmr": np.array([9.0, 0.0, -3.0]), "ict": np.array([-6.0, 6.0, 3.0])}
TUMOUR_MM = np.array([10.0, 0.0, 0.0])
BUNDLE = SimpleNamespace(
    name="fake 1", digests={"registration": "0" * 64}, config_digests={"registration": "1" * 64},
    manifest={"code_commit": "abc", "training_data": {}}, networks={},
)  # fmt: skip


def ball(radius_mm: float, centre_mm: np.ndarray) -> np.ndarray:
    return np.linalg.norm(GRID.grid_mm() - centre_mm, axis=-1) < radius_mm


def write_case(writer: CohortWriter, name: str, *, with_mr: bool = True, unmarked: str = "") -> None:
    roles = ["pct", "ict", *(["pmr"] if with_mr else [])]
    volumes, landmarks, fields = {}, {}, {}
    for role in roles:
        place = PLACE_MM[role]
        body, liver, tumour = ball(48, place), ball(28, place), ball(12, place + TUMOUR_MM)
        hu = np.where(body, 40.0, -1000.0) + 60 * liver - 40 * tumour
        volumes[role] = Volume(hu.astype(np.float32), GRID)
        volumes[f"{role}_liver"] = Volume(liver, GRID)
        volumes[f"{role}_tumour"] = Volume(tumour, GRID)
        points = np.array([[0.0, 0, 0], [10, 5, -5], [10, 0, 0]]) + place
        if role == unmarked:
            continue
        landmarks[role] = Landmarks(("hepatic_bifurcation_1", "portal_bifurcation_1", "tumour_1_centre"), points)
    volumes["ict_probe_mask"] = Volume(ball(10, PLACE_MM["ict"] + TUMOUR_MM), GRID)
    for moving, fixed in PAIRS.values():
        if moving in roles:
            fields[f"truth_field_{fixed}_from_{moving}"] = true_field(moving, fixed)
    writer.add(name, f"patient-{name}", volumes=volumes, fields=fields, landmarks=landmarks, split="test")


def true_field(moving: str, fixed: str) -> DisplacementField:
    return DisplacementField.from_linear(translation(PLACE_MM[moving] - PLACE_MM[fixed]), GRID)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    writer = CohortWriter(folder)
    write_case(writer, "a")
    write_case(writer, "b")
    write_case(writer, "ct-only", with_mr=False)
    writer.finish()
    return open_cohort(folder)


def oracle(patient: Patient) -> Answer:
    return Answer({
        pair: Solved(true_field(*PAIRS[pair]), 1.5, {"network": 1.0}, backward=true_field(*reversed(PAIRS[pair])))
        for pair in patient.pairs()
    })  # fmt: skip


def peer_that_fails_on_b(patient: Patient) -> Answer:
    if patient.case.id == "b":
        raise RuntimeError("the peer\nran away")
    return Answer({pair: Solved(DisplacementField.identity(GRID), 3.0) for pair in patient.pairs()})


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Three cheap methods instead of the real ones; the list fills with the units that really ran."""
    ran: list[tuple[str, str]] = []

    def noted(name: str, solve: Callable[[Patient], Answer]) -> Callable[[Patient], Answer]:
        def wrapped(patient: Patient) -> Answer:
            ran.append((patient.case.id, name))
            return solve(patient)

        return wrapped

    found = {
        "identity": identity_method(),
        "ants-syn": Method("ants-syn", "peer", "fails on b", noted("ants-syn", peer_that_fails_on_b)),
        "proposed-refine": Method("proposed-refine", "proposed", "the truth", noted("proposed-refine", oracle)),
    }
    skipped = [{"name": "flirt", "reason": "flirt needs the program flirt on the PATH"}]
    monkeypatch.setattr(evaluating, "_methods", lambda *_, **__: (found, skipped))
    monkeypatch.setattr(working, "pair_picture", lambda *_: "data:image/jpeg;base64,AAAA")
    return ran


def run(cohort: Cohort, out: Path, **options: Any) -> evaluating.Evaluation:
    return evaluating.evaluate(cohort, BUNDLE, out, split="test", threads=1, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("methods")
def test_tables_hold_known_numbers(cohort: Cohort, tmp_path: Path) -> None:
    logged: dict[str, float] = {}
    found = run(cohort, tmp_path, log=logged.update)
    rows = {(r["pair"], r["structure"], r["metric"], r["method"]): r for r in found.summary()}
    # identity leaves exactly the translation between the images
    start = rows["pCT-iCT", "liver", "tre_mm", "identity"]
    assert start["mean"] == pytest.approx(9.0, abs=1e-4)
    assert (start["n"], start["failed"]) == (3, 0)
    assert rows["pMR-pCT", "liver", "dense_tre_mm", "identity"]["mean"] == pytest.approx(90**0.5, abs=1e-4)
    assert rows["pMR-pCT", "liver", "dense_tre_mm", "identity"]["n"] == 2
    ours = rows["pMR-iCT", "tumour", "tre_mm", "proposed-refine"]
    assert ours["mean"] == pytest.approx(0.0, abs=1e-3)
    assert rows["pCT-iCT", "liver", "dice", "proposed-refine"]["mean"] > 0.9
    assert rows["pCT-iCT", "liver", "dice", "proposed-refine"]["paper_mean"] == 0.8863
    assert rows["pCT-iCT", "field", "seconds", "proposed-refine"]["mean"] == 1.5
    assert rows["pCT-iCT", "hole", "dense_tre_mm", "proposed-refine"]["mean"] == pytest.approx(0.0, abs=1e-3)
    assert rows["pCT-iCT", "field", "inverse_consistency_mm", "identity"]["mean"] == 0.0
    # the only peer is the bar, however poor; we never are
    assert rows["pCT-iCT", "liver", "tre_mm", "ants-syn"]["bar"] is True
    assert rows["pCT-iCT", "liver", "tre_mm", "proposed-refine"]["bar"] is False
    assert rows["pCT-iCT", "field", "inverse_consistency_mm", "proposed-refine"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found.results["steps"][0] == {
        "pair": "pMR-pCT", "method": "proposed-refine", "step": "network", "seconds": 1.0, "n": 2
    }  # fmt: skip
    assert logged["pCT-iCT/liver/tre_mm/identity"] == start["mean"]
    with (tmp_path / "table2.csv").open() as file:
        written = [row for row in csv.DictReader(file) if row["metric"] == "tre_mm" and row["method"] == "identity"]
    assert float(written[0]["mean"]) == pytest.approx(rows["pMR-pCT", "liver", "tre_mm", "identity"]["mean"], rel=1e-5)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["table"] == found.summary()


@pytest.mark.usefixtures("methods")
def test_failing_case_is_a_row_and_is_counted(cohort: Cohort, tmp_path: Path) -> None:
    found = run(cohort, tmp_path)
    failures = found.failures()
    assert {(f.case, f.method, f.pair) for f in failures} == {("b", "ants-syn", pair) for pair in PAIRS}
    assert failures[0].message == "RuntimeError: the peer ran away"
    row = next(r for r in found.summary() if (r["pair"], r["metric"], r["method"]) == ("pMR-pCT", "tre_mm", "ants-syn"))
    assert (row["n"], row["failed"]) == (1, 1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the peer ran away" in page
    assert "1 failed" in page
    assert "flirt needs the program" in page
    columns = re.findall(r'<th class="(\w+)">', page)
    assert columns.index("proposed") < columns.index("peer"), "the release's own columns come first"
    with (tmp_path / "cases.csv").open() as file:
        assert sum(line["status"] == "failed" for line in csv.DictReader(file)) == 3


def test_resume_runs_only_what_is_missing_or_failed(
    cohort: Cohort, tmp_path: Path, methods: list[tuple[str, str]]
) -> None:
    first = run(cohort, tmp_path)
    methods.clear()
    kept = next((tmp_path / "work").glob("a--proposed-refine*"))
    kept.write_text("{ half a fi", encoding="utf-8")
    second = run(cohort, tmp_path)
    assert set(methods) == {("a", "proposed-refine"), ("b", "ants-syn")}
    means = [{k: v for k, v in r.items() if k != "peak_memory_mb"} for r in first.summary() if r["metric"] == "tre_mm"]
    assert means == [r for r in second.summary() if r["metric"] == "tre_mm"]
    assert second.results["rerun"] is None
    methods.clear()
    third = run(cohort, tmp_path, fresh=True)
    assert len(methods) == 6
    # all but the case whose method fails every time, which is never kept
    assert third.results["rerun"]["units"] == 8
    assert third.results["rerun"]["within"]


def test_another_seed_does_not_reuse_records(cohort: Cohort, tmp_path: Path, methods: list[tuple[str, str]]) -> None:
    run(cohort, tmp_path)
    methods.clear()
    run(cohort, tmp_path, seed=5)
    assert len(methods) == 6


def test_other_packages_and_other_settings_of_a_network_do_not_reuse_records(
    cohort: Cohort, tmp_path: Path, methods: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cohort, tmp_path)
    methods.clear()
    monkeypatch.setattr(BUNDLE, "config_digests", {"registration": "2" * 64})
    run(cohort, tmp_path)
    # and the peer's case that fails every time
    assert set(methods) == {(case, "proposed-refine") for case in ("a", "b", "ct-only")} | {("b", "ants-syn")}
    methods.clear()
    monkeypatch.setattr(provenance, "_version", lambda name: "9.9")
    run(cohort, tmp_path)
    assert len(methods) == 6


@pytest.mark.usefixtures("methods")
def test_a_case_with_landmarks_on_some_of_its_images_has_its_page(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path / "cohort")
    write_case(writer, "a", unmarked="pmr")
    writer.finish()
    found = run(open_cohort(tmp_path / "cohort"), tmp_path / "out")
    assert {row["pair"] for row in found.summary() if row["metric"] == "tre_mm"} == {"pCT-iCT"}
    assert (tmp_path / "out/report.html").is_file()


@pytest.mark.usefixtures("methods")
def test_a_picture_that_fails_costs_no_number(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> str:
        raise MemoryError("no room to draw")

    monkeypatch.setattr(working, "pair_picture", torn)
    found = run(cohort, tmp_path)
    rows = {(r["pair"], r["structure"], r["metric"], r["method"]): r for r in found.summary()}
    assert rows["pCT-iCT", "liver", "tre_mm", "proposed-refine"]["n"] == 3
    assert {f.case for f in found.failures()} == {"b"}
    assert "no picture: MemoryError: no room to draw" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("methods")
def test_a_map_may_return_in_any_order(cohort: Cohort, tmp_path: Path) -> None:
    def backwards(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return [function(item) for item in reversed(list(items))]

    plain, spread = run(cohort, tmp_path / "plain"), run(cohort, tmp_path / "spread", map=backwards)
    keys = ("case", "method", "pair", "status", "liver_tre_mm")
    lines = [[{k: row.get(k) for k in keys} for row in e.results["cases"]] for e in (plain, spread)]
    assert lines[0] == lines[1]


@pytest.mark.usefixtures("methods")
def test_page_stands_alone_and_shows_worst_case_first(cohort: Cohort, tmp_path: Path) -> None:
    run(cohort, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page
    assert "<svg" in page
    assert "research use only" in page
    for outside in ("<script src", "<link", 'src="http', "url(http"):
        assert outside not in page
    assert cohort.digest in page


def test_an_mr_alone_becomes_a_synthetic_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = PLACE_MM["pmr"]
    mr = Volume((100.0 * ball(48, place) + 100.0 * ball(28, place)).astype(np.float32), GRID)
    writer = CohortWriter(tmp_path / "cohort")
    writer.add("mr-only", "patient", volumes={"pmr": mr, "pmr_liver": Volume(ball(28, place), GRID)}, split="test")
    writer.finish()
    monkeypatch.setattr(solving, "synthesise", lambda _, pmr: pmr.with_data(10.0 * pmr.as_float() - 1000.0))
    found = evaluating.evaluate(
        open_cohort(tmp_path / "cohort"),
        BUNDLE,
        tmp_path,
        baselines=[],
        threads=1,  # type: ignore[arg-type]
    )
    assert (tmp_path / "report.html").is_file()
    assert found.failures() == []
    scores = {
        row["metric"]: row["mean"] for row in found.results["images"]["synthesis"] if row["method"] == "proposed-fast"
    }
    assert scores["edge_drift_mm"] == pytest.approx(0.0, abs=1e-3)
    assert 0.0 <= scores["liver_boundary_mm"] < 6.0
    assert "mae_hu" not in scores


def test_through_sct_registers_the_synthetic_ct_and_never_sees_the_mr(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(cohort, next(case for case in cohort.cases() if case.id == "a"))
    made, field = Volume(np.full(GRID.shape, 7.0, np.float32), GRID), true_field("pmr", "pct")
    seen: list[tuple[Any, ...]] = []

    def register(*images: Any) -> SimpleNamespace:
        seen.append(images)
        return SimpleNamespace(field=field, timings={"affine": 1.0, "refine": 2.0})

    monkeypatch.setattr(varying, "synthesise", lambda *_: made)
    monkeypatch.setattr(varying, "register", register)
    method = varying.variant_method("through-sct", "route", BUNDLE, Running(1, 0, False))  # type: ignore[arg-type]
    answer = method.solve(patient)
    ((bundle, moving, fixed),) = seen
    assert (bundle, moving, fixed) == (BUNDLE, made, patient.volume("pct"))
    assert answer.synthetic_ct is made
    assert list(answer.solved) == ["pMR-pCT"]
    assert answer.solved["pMR-pCT"].field is field
    assert answer.solved["pMR-pCT"].seconds == pytest.approx(3.0, abs=0.5)
    assert set(answer.solved["pMR-pCT"].steps) == {"synthesise", "affine", "refine"}


@pytest.mark.usefixtures("methods")
def test_the_provenance_tells_which_releases_were_the_ablations(cohort: Cohort, tmp_path: Path) -> None:
    champion = Bundle({}, {}, {}, {"registration": "2" * 64}, tmp_path)
    found = run(cohort, tmp_path, ablate={"champion": champion, "raw": "no-inpainting"})
    assert found.results["provenance"]["ablations"] == {"champion": {"registration": "2" * 64}}


def test_empty_split_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="val") as caught:
        evaluating.evaluate(cohort, BUNDLE, tmp_path, split="val")  # type: ignore[arg-type]
    assert caught.value.code == "empty_split"


def test_ablation_named_like_a_method_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name of another method"):
        run(cohort, tmp_path, baselines=[], ablate={"identity": "inpaint-first"})


def test_unknown_variant_is_refused_with_the_words_there_are(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-inpainting"):
        run(cohort, tmp_path, baselines=[], ablate={"mine": "no-such-word"})


def test_what_cannot_run_is_named_with_the_reason() -> None:
    absent = Absent("no release is called there")
    found, skipped = evaluating._methods(BUNDLE, [], {"conv": absent, "raw": "no-inpainting"}, Running(1, 0, False))  # type: ignore[arg-type]
    assert list(found) == ["identity", "proposed-fast", "proposed-refine", "raw"]
    reasons = {row["name"]: row["reason"] for row in skipped}
    assert reasons["conv"] == "no release is called there"
    # the paper's other ablations need trainings of their own; the report says which
    assert "losses.mutual_information=0" in reasons["cyclegan"]
    assert set(reasons) == {"conv", *TRAINED_ABLATIONS}
