from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_cases import toy_case, toy_cohort

from hepalign.cases.cohort import open_cohort
from hepalign.cases.manifest import Manifest, parse_manifest
from hepalign.cases.splits import assign_splits
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError, UsageError, WorkFailedError

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "patient", "split", "files", "attributes"]), inner, max_size=5)
    ),
    max_leaves=12,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    toy_cohort(tmp_path / "toy")
    cohort = open_cohort(tmp_path / "toy")
    made = toy_case(2)
    case = next(case for case in cohort.cases() if case.id == "case-2")
    for name, volume in made["volumes"].items():
        read = cohort.volume(case, name)
        assert read.geometry.same_grid(volume.geometry)
        # CT is kept in whole HU
        np.testing.assert_allclose(read.as_float(), volume.as_float(), atol=0.5 if "ct" in name else 1e-3)
    np.testing.assert_array_equal(cohort.volume(case, "pct_tumour").data, made["volumes"]["pct_tumour"].data)
    truth = cohort.field(case, "truth_field_ict_from_pct")
    np.testing.assert_array_equal(truth.vectors, made["fields"]["truth_field_ict_from_pct"].vectors)
    assert cohort.landmarks(case, "ict").names == ("a", "b")
    assert case.attributes == {"seed": 2, "phase": "native"}
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["cases", "manifest.json"]


def test_a_cohort_written_twice_has_one_digest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        toy_cohort(tmp_path / name)
    assert open_cohort(tmp_path / "a").digest == open_cohort(tmp_path / "b").digest


def test_a_finished_case_is_not_written_again(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path)
    writer.add("one", "p1", **toy_case(1))
    again = CohortWriter(tmp_path)
    assert again.has("one")
    again.add("one", "p1", volumes={})
    assert len(again.finish().cases[0].files) == len(toy_case(1)["volumes"]) + 4


def test_a_case_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path)
    case = toy_case(1)
    case["attributes"]["bad"] = object()
    with pytest.raises(ValueError, match="bad"):
        writer.add("one", "p1", **case)
    assert not writer.has("one")
    assert list((tmp_path / "cases").iterdir()) == []


def test_two_writers_of_one_case_leave_one_whole_case(tmp_path: Path) -> None:
    writers = [CohortWriter(tmp_path) for _ in range(4)]
    case = {name: toy_case(1)["volumes"][name] for name in ("pct", "ict")}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda writer: writer.add("one", "p1", volumes=case), writers))
    writers[0].finish()
    cohort = open_cohort(tmp_path)
    assert [c.id for c in cohort.cases()] == ["one"]
    assert cohort.volume(cohort.cases()[0], "pct").data.shape == case["pct"].data.shape


def test_two_writers_that_finish_at_once_lose_no_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ct = {"pct": toy_case(0)["volumes"]["pct"]}
    first, second = CohortWriter(tmp_path), CohortWriter(tmp_path)
    first.add("one", "p1", volumes=ct)
    late: list[Thread] = []

    def dividing(*words: Any, **options: Any) -> Any:
        if not late:
            # the other begins once the first has read what there is, and must wait for it
            second.add("two", "p2", volumes=ct)
            late.append(Thread(target=second.finish))
            late[0].start()
            late[0].join(0.5)
        return assign_splits(*words, **options)

    monkeypatch.setattr("hepalign.cases.writer.assign_splits", dividing)
    first.finish()
    late[0].join()
    assert [case.id for case in open_cohort(tmp_path).cases()] == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases", "manifest.json"]


def test_a_lock_that_outlived_its_folder_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CohortWriter(tmp_path / "c")
    lock = fcntl.flock
    removed: list[Path] = []

    def waited(descriptor: int, how: int) -> None:
        if not removed:
            removed.append((tmp_path / "c").rename(tmp_path / "sent"))
            (tmp_path / "c").mkdir()
            CohortWriter(tmp_path / "c").add("one", "p1", volumes={"pct": toy_case(0)["volumes"]["pct"]})
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", waited)
    assert [case.id for case in writer.finish().cases] == ["one"]
    descriptor = os.open(tmp_path / "sent", os.O_RDONLY)
    lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_extending_keeps_cases_and_splits(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=3)
    before = {case.patient: case.split for case in open_cohort(tmp_path).cases()}
    writer = CohortWriter(tmp_path)
    for n in range(10):
        writer.add(f"new-{n}", f"patient-{n}", volumes={"pct": toy_case(n)["volumes"]["pct"]})
    writer.finish(seed=5)
    cases = open_cohort(tmp_path).cases()
    assert len(cases) == 13
    assert all(case.split == before[case.patient] for case in cases if case.patient in before)


def test_one_patient_stands_in_one_split(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path)
    ct = {"pct": toy_case(0)["volumes"]["pct"]}
    for n in range(4):
        writer.add(f"visit-{n}", "same", volumes=ct)
    writer.add("other", "other", volumes=ct, split="test")
    assert len({case.split for case in writer.finish().cases if case.patient == "same"}) == 1
    writer.add("visit-9", "other", volumes=ct, split="train")
    with pytest.raises(BadInputError, match="two splits") as error:
        writer.finish()
    assert error.value.code == "patient_in_two_splits"


@pytest.mark.parametrize("word", ["", "../up", "a/b", ".hidden", "Müller", "x" * 65, "a b", "a\n"])
def test_ids_are_plain_folder_names(tmp_path: Path, word: str) -> None:
    writer = CohortWriter(tmp_path)
    for case_id, patient in ((word, "p"), ("c", word)):
        with pytest.raises(BadInputError) as error:
            writer.add(case_id, patient, volumes={})
        assert error.value.code == "bad_case_id"
    with pytest.raises(BadInputError, match="pseudonyms"):
        writer.has(word)


def test_an_empty_cohort_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as error:
        CohortWriter(tmp_path).finish()
    assert error.value.code == "empty_cohort"
    assert not (tmp_path / "manifest.json").exists()


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=1)
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    for bad in ("../../secret.nii.gz", "/etc/passwd", "cases/other/pct.nii.gz", "cases/case-0/../case-0/pct.nii.gz"):
        with pytest.raises(BadInputError) as error:
            parse_manifest(text.replace("cases/case-0/pct.nii.gz", bad).encode())
        assert error.value.code == "bad_manifest"


def test_a_manifest_with_a_leak_is_refused(tmp_path: Path) -> None:
    toy_cohort(tmp_path, cases=3)
    manifest = parse_manifest((tmp_path / "manifest.json").read_bytes())
    leaking = [case.model_copy(update={"patient": "same"}) for case in manifest.cases]
    data = Manifest.model_construct(schema_version=1, cases=tuple(leaking)).to_json()
    with pytest.raises(BadInputError, match="two splits"):
        parse_manifest(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"schema_version": 2, "cases": []}', b"\xff"])
def test_other_json_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BadInputError) as error:
        parse_manifest(data)
    assert error.value.code == "bad_manifest"


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"schema_version": 1, "cases": value}).encode()))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadInputError):
        parse_manifest(data)


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^file: ") as caught:
        CohortWriter(tmp_path / "file")
    assert caught.value.code == "out_unusable"


def test_fault_73_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CohortWriter(tmp_path / "c")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr("hepalign.cases.writer.write_nifti", full)
    with pytest.raises(WorkFailedError) as caught:
        writer.add("one", "p", volumes={"pct": toy_case(0)["volumes"]["pct"]})
    assert (caught.value.code, caught.value.status) == ("storage_full", 507)
    assert str(tmp_path) not in caught.value.message
    assert list((tmp_path / "c" / "cases").iterdir()) == []
