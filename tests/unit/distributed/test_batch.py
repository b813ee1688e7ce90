"""Scoring a cohort's cases in this process: what an earlier run finished is taken only when it is the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_cases import toy_case

from hepalign.cases.case import Case
from hepalign.cases.writer import CohortWriter
from hepalign.distributed import evaluation
from hepalign.errors import BadInputError


def cohort(folder: Path, seeds: tuple[int, ...]) -> str:
    writer = CohortWriter(folder)
    for number, seed in enumerate(seeds):
        writer.add(f"case-{number}", f"patient-{number}", **toy_case(seed))
    writer.finish()
    return str(folder)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that were really computed; a release is called by its weights' digest here."""
    found: list[str] = []

    def run_case(bundle: SimpleNamespace, _: object, case: Case, out: Path) -> dict[str, Any]:
        found.append(case.id)
        if bundle.digests["registration"] == "fails":
            raise BadInputError("made to fail", code="made_to_fail")
        result = {"quality": {"status": "accept"}, "weight_digests": bundle.digests}
        out.mkdir(exist_ok=True)
        (out / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return result

    def load_bundle(name: str) -> SimpleNamespace:
        return SimpleNamespace(digests={"registration": name}, config_digests={"registration": "c"})

    monkeypatch.setattr(evaluation, "run_case", run_case)
    monkeypatch.setattr(evaluation, "resolve_release", lambda name: name)
    monkeypatch.setattr(evaluation, "load_bundle", load_bundle)
    return found


def test_only_a_result_of_the_same_release_and_files_is_taken(tmp_path: Path, ran: list[str]) -> None:
    first, out = cohort(tmp_path / "first", (0, 1)), tmp_path / "out"

    def scored(place: str, release: str) -> list[str]:
        ran.clear()
        assert {row["status"] for row in evaluation.score_cohort(place, release, out)} == {"accept"}
        return list(ran)

    assert scored(first, "a") == ["case-0", "case-1"]
    assert scored(first, "a") == []
    assert scored(first, "b") == ["case-0", "case-1"]
    assert scored(first, "b") == []
    assert scored(cohort(tmp_path / "second", (0, 5)), "b") == ["case-1"]


def test_a_case_that_fails_now_keeps_nothing_of_another_release(tmp_path: Path, ran: list[str]) -> None:
    place, out = cohort(tmp_path / "cohort", (0,)), tmp_path / "out"
    evaluation.score_cohort(place, "a", out)
    (row,) = evaluation.score_cohort(place, "fails", out)
    assert (row["status"], row["message"]) == ("failed", "[made_to_fail] made to fail")
    assert not (out / "case-0/result.json").exists()
    evaluation.score_cohort(place, "a", out)
    assert ran == ["case-0"] * 3
