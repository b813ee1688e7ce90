from __future__ import annotations

import json
from pathlib import Path

import pytest

from hepalign.errors import BadInputError
from hepalign.inference.bundle import STAGES, build_bundle, load_bundle
from hepalign.inference.untrained import make_untrained_bundle


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untrained_bundle(tmp_path_factory.mktemp("release"))


def code_of(folder: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        load_bundle(folder)
    return caught.value.code


def test_a_release_loads_with_its_digests(release: Path) -> None:
    bundle = load_bundle(release)
    assert set(bundle.networks) == set(STAGES)
    assert bundle.name == "untrained 0"
    assert not any(net.training for net in bundle.networks.values())
    assert set(bundle.digests) == set(STAGES)
    with pytest.raises(TypeError):
        bundle.networks["synthesis"] = bundle.networks["inpainting"]  # type: ignore[index]


def test_the_gates_report_and_training_data_travel_with_it(release: Path, tmp_path: Path) -> None:
    folder = build_bundle(
        tmp_path / "made", dict.fromkeys(STAGES, release), name="hepalign", version="2",
        training_data={"phantom": "abc"}, gate={"passed": True},
    )  # fmt: skip
    manifest = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    assert manifest["training_data"] == {"phantom": "abc"}
    assert json.loads((folder / "gate.json").read_text(encoding="utf-8")) == manifest["gate"] == {"passed": True}
    assert load_bundle(folder).digests == load_bundle(release).digests


def test_a_missing_stage_and_foreign_files_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="inpainting"):
        build_bundle(tmp_path / "a", {"synthesis": release}, name="x", version="1")
    assert code_of(tmp_path) == "release_missing"
    (tmp_path / "release.json").write_text("{", encoding="utf-8")
    assert code_of(tmp_path) == "release_format"
    (tmp_path / "release.json").write_text('{"schema": 99}', encoding="utf-8")
    assert code_of(tmp_path) == "release_format"


def test_a_changed_config_is_refused(release: Path, tmp_path: Path) -> None:
    folder = build_bundle(tmp_path / "made", dict.fromkeys(STAGES, release), name="x", version="1")
    config = folder / "registration.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert code_of(folder) == "weights_digest"
