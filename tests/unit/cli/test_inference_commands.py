"""What `plan`, `inpaint`, `register` and `points` make of their files before the chain sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flaky_s3 import bucket
from small_pairs import body_ct, liver_mask
from toy_dicom import write_dicom
from typer.main import get_command

from hepalign.cases import s3
from hepalign.cases.manifest import sha256_of
from hepalign.cli.app import app
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.inference.inpaint import Inpainted
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import write_field

CT = body_ct(1)
COARSE = Geometry(tuple(n // 2 for n in CT.geometry.shape), CT.geometry.affine @ np.diag([2, 2, 2, 1]))  # type: ignore[arg-type]


class _Seen:
    """Stands for a plan or a registration; keeps what its maker was called with."""

    warnings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.labels: dict[str, Volume] = {}

    def summary(self) -> dict[str, object]:
        return {}

    def save(self, folder: Path) -> None:
        pass

    def plan(self, *_: object, labels: dict[str, Volume], engine: str) -> _Seen:
        self.labels = labels
        return self

    def register(self, *_: object, moving_label: Volume, engine: str, probe_mask: Volume | None) -> _Seen:
        self.labels = {"moving": moving_label}
        return self


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> _Seen:
    chain = _Seen()
    monkeypatch.setattr("hepalign.cli.inference._bundle", lambda release: None)
    monkeypatch.setattr("hepalign.inference.planner.plan", chain.plan)
    monkeypatch.setattr("hepalign.inference.register.register", chain.register)
    return chain


@pytest.fixture
def inbox() -> Iterator[str]:
    with bucket("inbox"):
        yield "inbox"


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        get_command(app)(args=[*words, "--json"], prog_name="hepalign")
    return int(str(ended.value.code or 0)), json.loads(capfd.readouterr().out)


def tumours(geometry: Geometry) -> Volume:
    data = np.zeros(geometry.shape, np.uint8)
    middle = np.array(geometry.shape) // 2
    for value in (1, 2):
        data[tuple(slice(n - 6 + 4 * value, n - 2 + 4 * value) for n in middle)] = value
    return Volume(data, geometry)


def calls(folder: Path, label: Path) -> dict[str, list[str]]:
    write_nifti(CT, folder / "ct.nii.gz")
    write_nifti(CT.with_data(CT.as_float() - CT.as_float().min()), folder / "mr.nii.gz")
    mr, ct, out = (str(folder / name) for name in ("mr.nii.gz", "ct.nii.gz", "out"))
    return {
        "pmr_tumour": ["plan", "--pmr", mr, "--pct", ct, "--out", out, "--label", f"pmr:tumour={label}"],
        "moving": ["register", "--moving", ct, "--fixed", ct, "--out", out, "--moving-label", str(label)],
    }


def test_fault_35_a_label_on_another_grid_is_brought_to_its_images(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seen: _Seen
) -> None:
    write_nifti(tumours(COARSE), tmp_path / "t.nii.gz")
    for name, words in calls(tmp_path, tmp_path / "t.nii.gz").items():
        status, answer = run(words, capfd)
        assert status == 0, answer
        label = seen.labels[name]
        assert label.geometry.same_grid(CT.geometry)
        assert set(np.unique(label.data).tolist()) == {0, 1, 2}
        said = answer.get("read_warnings", answer.get("warnings"))
        assert "t.nii.gz: was on another grid and was resampled to its image's" in said  # type: ignore[operator]


def test_fault_36_a_label_of_another_frame_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seen: _Seen
) -> None:
    away = CT.geometry.affine.copy()
    away[:3, 3] += 3000
    write_nifti(tumours(Geometry(CT.geometry.shape, away)), tmp_path / "t.nii.gz")
    for words in calls(tmp_path, tmp_path / "t.nii.gz").values():
        status, answer = run(words, capfd)
        assert (status, answer["error"]["code"]) == (3, "frame_mismatch")  # type: ignore[index]
    assert not seen.labels


@pytest.mark.parametrize(("word", "code"), [("tumour=x", "usage"), ("ict:liver=x", "unknown_label")])
def test_words_of_labels_are_judged_before_any_image_is_read(
    word: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, answer = run(["plan", "--pmr", "none", "--pct", "none", "--out", "out", "--label", word], capfd)
    assert answer["error"]["code"] == code  # type: ignore[index]


def test_images_labels_and_probe_masks_may_lie_in_a_bucket(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seen: _Seen, inbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = np.zeros(CT.geometry.shape, np.uint8)
    probe[tuple(slice(n // 2, n // 2 + 3) for n in probe.shape)] = 1
    middle = CT.geometry.centre_mm
    box = {"kind": "box", "low_mm": (middle - 9).tolist(), "high_mm": (middle + 9).tolist()}
    write_nifti(CT.with_data(probe), tmp_path / "mask.nii.gz")
    (tmp_path / "mask.json").write_text(json.dumps(box), encoding="utf-8")
    calls(tmp_path, tmp_path / "none")
    write_nifti(liver_mask(CT), tmp_path / "liver.nii.gz")
    keys = {path.name: path for path in tmp_path.iterdir() if path.is_file()}
    keys |= {f"series/{path.name}": path for path in write_dicom(CT, tmp_path / "series").iterdir()}
    for key, path in keys.items():
        s3.upload(path, inbox, key, sha256_of(path))
    there = f"s3://{inbox}/"
    masks: list[Volume] = []

    def inpainted(_: object, image: Volume, mask: Volume, prior: Volume | None) -> Inpainted:
        assert prior is not None
        masks.append(mask)
        return Inpainted(image, mask)

    monkeypatch.setattr("hepalign.inference.inpaint.inpaint", inpainted)
    for image, mask in (("ct.nii.gz", "mask.nii.gz"), ("series", "mask.json")):
        words = ["--in", there + image, "--probe-mask", there + mask, "--prior", there + "ct.nii.gz"]
        status, answer = run(["inpaint", *words, "--out", str(tmp_path / "in.nii.gz")], capfd)
        assert status == 0, answer
        assert masks[-1].as_mask().any()
    words = [
        "plan",
        "--pmr",
        there + "mr.nii.gz",
        "--pct",
        there + "series",
        "--label",
        f"pct:liver={there}liver.nii.gz",
    ]
    assert run([*words, "--out", str(tmp_path / "plan")], capfd)[0] == 0
    assert seen.labels["pct_liver"].as_mask().any()
    status, answer = run(["synthesise", "--in", there + "none.nii.gz", "--out", str(tmp_path / "s.nii.gz")], capfd)
    assert answer["error"]["code"] == "no_such_file"  # type: ignore[index]


def test_points_need_no_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = Geometry.from_spacing((6, 6, 6), 2.0)
    moved = np.broadcast_to(np.float32([1, 0, -1]), (*grid.shape, 3))
    write_field(DisplacementField(np.ascontiguousarray(moved), grid), tmp_path / "field.nii.gz")
    (tmp_path / "points.csv").write_text("x,y,z\n4,4,4\n2,6,4\n", encoding="utf-8")
    words = ["points", "--field", str(tmp_path / "field.nii.gz"), "--points", str(tmp_path / "points.csv")]
    status, _ = run([*words, "--out", str(tmp_path / "out.csv")], capfd)
    assert status == 0
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["name,x,y,z", "1,5.000,4.000,3.000", "2,3.000,6.000,3.000"]
