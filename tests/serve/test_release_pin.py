"""What the service takes from MLflow: the promoted champion, its predecessor after a rollback, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_store import isolated
from small_release import evaluation, small_release

from hepalign.cases.store import Shelf
from hepalign.errors import BadInputError, WorkFailedError
from hepalign.inference.bundle import load_bundle
from hepalign.tracking.promotion import promote, rollback
from hepalign.tracking.registry import client
from hepalign.tracking.releases import register_release
from hepalign_serve.releases import pin

CHAMPION = "models:/hepalign@champion"
POLICY = """
split: test
min_cases: 6
thresholds:
  - {pair: pCT-iCT, structure: liver, metric: tre_mm, at_most: 5.0}
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    for name, value in isolated(tmp_path / "mlflow").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data" / "releases").mkdir(parents=True)
    return Shelf(tmp_path / "data")


def put_forward(folder: Path, seed: int) -> None:
    release = small_release(folder / str(seed), seed)
    judged = evaluation(folder / str(seed) / "evaluation", release, {f"case-{n}": 2.0 for n in range(8)})
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    promote(str(release), evaluation=judged, policy=folder / "policy.yaml", reason=f"release {seed}", who="owner")


def test_the_champion_is_followed_and_a_rollback_too(shelf: Shelf, tmp_path: Path) -> None:
    put_forward(tmp_path, 1)
    first = pin(CHAMPION, shelf)
    assert (first.version, set(first.networks)) == ("1", {"synthesis", "inpainting", "registration"})
    assert load_bundle(shelf.folder / first.key).digests == first.networks
    assert pin(CHAMPION, shelf) == first
    put_forward(tmp_path, 2)
    second = pin(CHAMPION, shelf)
    assert second.version == "2"
    assert (shelf.folder / first.key).is_dir()  # what runs with it goes on
    rollback(reason="2 drifts")
    assert pin(CHAMPION, shelf) == first


def test_what_nobody_promoted_is_not_served_but_may_be_a_shadow(shelf: Shelf, tmp_path: Path) -> None:
    put_forward(tmp_path, 1)
    made = small_release(tmp_path / "3", 3)
    version = register_release(made)
    with pytest.raises(WorkFailedError):
        pin(f"models:/hepalign/{version}", shelf)
    with pytest.raises(WorkFailedError):
        pin(str(made), shelf)
    assert pin("models:/hepalign@candidate", shelf, verify=False).version == "3"
    client().set_registered_model_alias("hepalign", "champion", version)
    with pytest.raises(WorkFailedError, match="by hand"):
        pin(CHAMPION, shelf)


def test_a_release_that_was_read_half_written_is_copied_again(shelf: Shelf, tmp_path: Path) -> None:
    made = small_release(tmp_path / "5", 5)
    weights = made / "registration.safetensors"
    whole = weights.read_bytes()
    for half in (whole[: len(whole) // 2], None):
        weights.unlink()
        if half is not None:
            weights.write_bytes(half)
        with pytest.raises(BadInputError) as error:
            pin(str(made), shelf, verify=False)
        assert error.value.code == "weights_digest"
        assert list((shelf.folder / "releases").iterdir()) == []
    weights.write_bytes(whole)
    pinned = pin(str(made), shelf, verify=False)
    assert load_bundle(shelf.folder / pinned.key).digests == pinned.networks


def test_weights_that_are_not_the_pinned_ones_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    pinned = pin(str(small_release(tmp_path / "4", 4)), shelf, verify=False)
    weights = shelf.folder / pinned.key / "registration.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BadInputError) as error:
        load_bundle(shelf.folder / pinned.key)
    assert error.value.code == "weights_digest"
