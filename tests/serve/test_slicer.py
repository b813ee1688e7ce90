"""The Slicer module's calls, without Slicer."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shown_site import Shown, result_of

from hepalign.image.nifti import read_nifti, write_nifti

MODULE = Path(__file__).parents[2] / "serve/slicer/Hepalign"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(MODULE))
    return importlib.import_module("hepalign_slicer.session")


def test_only_pythons_own_library_and_slicers() -> None:
    for path in MODULE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        named += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        roots = {name.partition(".")[0] for name in named}
        assert roots - sys.stdlib_module_names <= {"slicer", "qt", "ctk", "hepalign_slicer"}


VERDICTS = [("accept", ""), ("review", "REVIEW: "), ("reject", "REJECTED, DO NOT USE: ")]


@pytest.mark.parametrize(("status", "prefix"), VERDICTS)
def test_guide_fetches_what_is_loaded(session: Any, shown: Shown, tmp_path: Path, status: str, prefix: str) -> None:
    shown = shown.another_case()
    write_nifti(shown.phantom.volumes["ict"], tmp_path / "ict.nii.gz")
    (tmp_path / "probe.json").write_text(session.probe_box([10, 70, -10, 20, -20, 20]), encoding="utf-8")
    told: list[str] = []
    ended = threading.Thread(target=lambda: finish(shown, status))
    ended.start()
    images = {"ict": tmp_path / "ict.nii.gz", "ict-probe-mask": tmp_path / "probe.json"}
    found = session.Session(shown.url, shown.token).guide(
        shown.case, images, tmp_path, lambda step, done: told.append(step)
    )
    ended.join()
    assert (found.status, list(found.reasons)) == (status, result_of(status)["quality"]["reasons"])
    names = {result.name: result for result in found.results}
    assert names[f"{prefix}labels on iCT"].kind == "labels"
    shown_labels = read_nifti(names[f"{prefix}labels on iCT"].path)
    assert shown_labels.geometry.same_grid(shown.labels().geometry)
    assert {"sending ict", "guide: waiting, 0 before"} <= set(told)


def finish(shown: Shown, status: str) -> None:
    """Does what a replica would with the job that the module orders."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if job := shown.queued():
            time.sleep(0.5)
            shown.keep(job, {"labels_on_ict.nii.gz": shown.labels()})
            shown.change_job(job, state="succeeded", result=result_of(status), finished=time.time())
            return
        time.sleep(0.05)


def test_box_of_a_roi(session: Any) -> None:
    box = json.loads(session.probe_box([10.0, 70.0, -10.0, 20.0, -20.0, 20.0]))
    assert box == {"kind": "box", "low_mm": [10.0, -10.0, -20.0], "high_mm": [70.0, 20.0, 20.0]}


def test_refusals_are_told(session: Any, shown: Shown, tmp_path: Path) -> None:
    with pytest.raises(session.RefusedError, match="not_found"):
        session.Session(shown.url, shown.token).guide("unknown", {}, tmp_path, lambda step, done: None)
    with pytest.raises(session.RefusedError, match="no_answer"):
        session.Session("http://127.0.0.1:9", "x").plan({}, lambda step, done: None)
    with pytest.raises(session.RefusedError, match="http"):
        session.Session("file:///etc", "x")
