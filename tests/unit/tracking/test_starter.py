"""The release that comes with the package: whole, gated, small, and taken where nobody names another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hepalign.inference.bundle import load_bundle
from hepalign.tracking.resolution import resolve_release


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fresh installation takes."""
    monkeypatch.delenv("HEPALIGN_RELEASE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    return resolve_release()


def test_a_fresh_installation_has_a_release_that_passed_the_gate(starter: Path) -> None:
    assert starter.parent.name == "hepalign"
    assert resolve_release(str(starter), verify=True) == starter
    bundle = load_bundle(starter)
    assert set(bundle.networks) == {"synthesis", "inpainting", "registration"}
    for net in bundle.networks.values():
        assert all(np.isfinite(weight.detach().numpy()).all() for weight in net.parameters())


def test_the_starter_is_small_and_holds_weights_alone(starter: Path) -> None:
    files = [path for path in starter.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}


def test_the_starter_says_what_it_was_trained_on_and_judged_by(starter: Path) -> None:
    manifest = json.loads((starter / "release.json").read_text(encoding="utf-8"))
    gate = json.loads((starter / "gate.json").read_text(encoding="utf-8"))
    assert set(manifest["training_data"]["cohorts"]) == {"phantom", "random", "real", "sarcoma"}
    assert gate["passed"]
    rules = {check["rule"]: check for check in gate["checks"]}
    assert rules["no test patient in training"]["passed"]
    assert int(rules["at least 6 cases"]["found"]) >= 6
