"""Cohorts under s3://, over real HTTP, with everything that breaks on the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flaky_s3 import FlakyS3, bucket
from toy_cases import toy_case, toy_cohort
from toy_dicom import write_dicom

from hepalign.cases import s3
from hepalign.cases.check import check_cohort
from hepalign.cases.cohort import open_cohort
from hepalign.cases.manifest import sha256_of
from hepalign.cases.prepared import cache_folder
from hepalign.cases.sources.importing import import_case
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError, UsageError, WorkFailedError
from hepalign.image.nifti import write_nifti

URL = "s3://bucket/cohorts/toy"


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyS3]:
    with bucket("bucket") as proxy:
        yield proxy


@pytest.fixture
def store(server: FlakyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FlakyS3]:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path / "cache"))
    server.faults.clear()
    server.requests.clear()
    yield server
    server.faults.clear()
    for key in s3.list_keys("bucket", ""):
        s3.client().delete_object(Bucket="bucket", Key=key)


def small_cohort(url: str = URL) -> None:
    """One case of two images."""
    writer = CohortWriter(url)
    writer.add("case-0", "patient-0", volumes={name: toy_case(0)["volumes"][name] for name in ("pct", "ict")})
    writer.finish()


def test_a_cohort_in_a_bucket_is_the_cohort_in_a_folder(store: FlakyS3, tmp_path: Path) -> None:
    toy_cohort(URL, cases=2)
    toy_cohort(tmp_path / "local", cases=2)
    remote, local = open_cohort(URL), open_cohort(tmp_path / "local")
    assert remote.digest == local.digest
    assert remote.name == "toy"
    case = remote.cases()[0]
    np.testing.assert_array_equal(remote.volume(case, "pct").data, local.volume(case, "pct").data)
    np.testing.assert_array_equal(
        remote.field(case, "truth_field_ict_from_pct").vectors, local.field(case, "truth_field_ict_from_pct").vectors
    )
    assert remote.landmarks(case, "pct").names == ("a", "b")
    assert not any((cache_folder() / "outgoing").iterdir())


def test_a_file_is_downloaded_once(store: FlakyS3) -> None:
    small_cohort()
    for _ in range(2):
        cohort = open_cohort(URL)
        cohort.volume(cohort.cases()[0], "pct")
    assert sum(method == "GET" and path.endswith("pct.nii.gz") for method, path, _ in store.requests) == 1


def test_extending_a_cohort_in_a_bucket(store: FlakyS3) -> None:
    small_cohort()
    writer = CohortWriter(URL)
    assert writer.has("case-0")
    writer.add("case-1", "patient-1", volumes={"pct": toy_case(1)["volumes"]["pct"]})
    writer.finish()
    assert [case.id for case in open_cohort(URL).cases()] == ["case-0", "case-1"]


def test_what_another_writer_has_staged_is_not_cleared(store: FlakyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    cts = [{"pct": toy_case(number)["volumes"]["pct"]} for number in range(3)]
    first, second = CohortWriter(URL), CohortWriter(URL)
    first.add("case-0", "patient-0", volumes=cts[0])
    upload = s3.upload

    def uploading(*words: Any) -> None:
        second.add("case-1", "patient-1", volumes=cts[1])
        upload(*words)

    monkeypatch.setattr(s3, "upload", uploading)
    first.finish()
    assert [case.id for case in open_cohort(URL).cases()] == ["case-0"]
    second.finish()
    assert [case.id for case in open_cohort(URL).cases()] == ["case-0", "case-1"]
    # its staging folder is gone by now
    first.add("case-2", "patient-2", volumes=cts[2])
    first.finish()
    assert check_cohort(URL) == []
    assert len(open_cohort(URL).cases()) == 3


@pytest.mark.parametrize("begun", [False, True], ids=["a-first-manifest", "a-next-one"])
def test_a_manifest_written_by_another_machine_meanwhile_is_extended(
    store: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    ct = {"pct": toy_case(0)["volumes"]["pct"]}
    if begun:
        small_cohort()
    writer = CohortWriter(URL)
    writer.add("here", "patient-1", volumes=ct)
    upload, others = s3.upload, [tmp_path / "another-machine"]

    def uploading(*words: Any) -> None:
        if others:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HEPALIGN_CACHE", str(others.pop()))
                other = CohortWriter(URL)
                other.add("there", "patient-2", volumes=ct)
                other.finish()
        upload(*words)

    monkeypatch.setattr(s3, "upload", uploading)
    writer.finish()
    assert [case.id for case in open_cohort(URL).cases()] == ["case-0"] * begun + ["here", "there"]


def test_503s_and_refused_connections_are_tried_again(store: FlakyS3) -> None:
    store.faults += [("PUT", "pct.nii.gz", "503"), ("PUT", "ict.nii.gz", "refuse"), ("HEAD", "pct.nii.gz", "503")]
    small_cohort()
    store.faults += [("GET", "manifest.json", "503"), ("GET", "pct.nii.gz", "503"), ("GET", "pct.nii.gz", "refuse")]
    cohort = open_cohort(URL)
    assert cohort.volume(cohort.cases()[0], "pct").data.any()
    assert not store.faults


def test_a_dropped_download_goes_on_where_it_broke(store: FlakyS3) -> None:
    small_cohort()
    store.faults += [("GET", "pct.nii.gz", "drop"), ("GET", "pct.nii.gz", "drop"), ("GET", "manifest.json", "drop")]
    cohort = open_cohort(URL)
    assert cohort.volume(cohort.cases()[0], "pct").data.any()
    ranges = [headers["Range"] for method, path, headers in store.requests if "pct" in path and method == "GET"]
    starts = [int(word.removeprefix("bytes=").removesuffix("-")) for word in ranges]
    assert len(starts) == 3
    assert starts[0] == 0 < starts[1] < starts[2]


def test_a_truncated_object_is_refused_and_leaves_nothing(store: FlakyS3) -> None:
    small_cohort()
    key = "cohorts/toy/cases/case-0/pct.nii.gz"
    data = s3.read_object("bucket", key)
    s3.client().put_object(Bucket="bucket", Key=key, Body=data[:-100])
    cohort = open_cohort(URL)
    with pytest.raises(BadInputError, match=r"case-0.*pct\.nii\.gz") as error:
        cohort.volume(cohort.cases()[0], "pct")
    assert error.value.code == "changed_file"
    assert not [path for path in (cache_folder() / "objects").rglob("*") if path.is_file() and path.stat().st_size]
    s3.client().put_object(Bucket="bucket", Key=key, Body=data)
    assert cohort.volume(cohort.cases()[0], "pct").data.any()


def test_a_spoiled_cache_or_leftover_is_fetched_again(store: FlakyS3) -> None:
    small_cohort()
    cohort = open_cohort(URL)
    case = cohort.cases()[0]
    path = cohort.path(case, "pct")
    path.write_bytes(b"spoiled")
    path.with_name(f"{path.name}.part").write_bytes(b"the beginning of something else")
    assert cohort.volume(case, "pct").data.any()
    assert sha256_of(path) == path.name


FETCH = """
import sys
from pathlib import Path
from hepalign.cases.manifest import FileEntry
from hepalign.cases.s3 import S3Url
from hepalign.cases.store import S3Store
url, cache, entry = sys.argv[1:]
print(S3Store(S3Url.parse(url), Path(cache)).fetch(FileEntry.model_validate_json(entry)).name)
"""


def test_processes_share_the_cache(store: FlakyS3) -> None:
    small_cohort()
    cohort = open_cohort(URL)
    entry = cohort.entry(cohort.cases()[0], "pct")
    words = [sys.executable, "-c", FETCH, URL, str(cache_folder()), entry.model_dump_json()]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].decode().strip() for process in running] == [entry.sha256] * 2
    assert sum(method == "GET" and path.endswith("pct.nii.gz") for method, path, _ in store.requests) == 1


def test_a_broken_multipart_upload_goes_on(store: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    path = tmp_path / "big.bin"
    path.write_bytes(np.random.default_rng(0).bytes(12 << 20))
    sent: list[int] = []
    real = s3.client().upload_part

    def breaking(**words: object) -> object:
        if len(sent) == 2:
            raise ConnectionError("the process was killed")
        sent.append(int(str(words["PartNumber"])))
        return real(**words)  # type: ignore[arg-type]

    monkeypatch.setattr(s3.client(), "upload_part", breaking)
    with pytest.raises(WorkFailedError):
        s3.upload(path, "bucket", "big.bin", sha256_of(path))
    monkeypatch.setattr(s3.client(), "upload_part", real)
    store.requests.clear()
    s3.upload(path, "bucket", "big.bin", sha256_of(path))
    parts = [where for method, where, _ in store.requests if method == "PUT"]
    assert len(parts) == 1
    assert "partNumber=3" in parts[0]
    s3.download("bucket", "big.bin", tmp_path / "back.bin")
    assert sha256_of(tmp_path / "back.bin") == sha256_of(path)
    s3.upload(path, "bucket", "big.bin", sha256_of(path))
    assert sum(method == "PUT" for method, _, _ in store.requests) == 1


def test_an_upload_of_other_content_is_not_mixed_in(
    store: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    begun = s3.client().create_multipart_upload(Bucket="bucket", Key="big.bin")
    s3.client().upload_part(
        Bucket="bucket", Key="big.bin", UploadId=begun["UploadId"], PartNumber=1, Body=bytes(5 << 20)
    )
    path = tmp_path / "big.bin"
    path.write_bytes(np.random.default_rng(1).bytes(11 << 20))
    s3.upload(path, "bucket", "big.bin", sha256_of(path))
    s3.download("bucket", "big.bin", tmp_path / "back.bin")
    assert sha256_of(tmp_path / "back.bin") == sha256_of(path)


def test_images_are_imported_from_a_bucket(store: FlakyS3, tmp_path: Path) -> None:
    image = toy_case(0)["volumes"]["pct"]
    write_nifti(image, tmp_path / "pct.nii.gz")
    keys = {"inbox/erika.nii.gz": tmp_path / "pct.nii.gz"}
    keys |= {f"inbox/ict/{path.name}": path for path in write_dicom(image, tmp_path / "ict").iterdir()}
    keys["inbox/ict2/other"] = tmp_path / "pct.nii.gz"
    for key, path in keys.items():
        s3.upload(path, "bucket", key, sha256_of(path))
    images = {"pct": "s3://bucket/inbox/erika.nii.gz", "ict": "s3://bucket/inbox/ict"}
    import_case(tmp_path / "c", "one", images=images, shape=(40, 32, 32), spacing_mm=4)
    cohort = open_cohort(tmp_path / "c")
    pct, ict = (cohort.volume(cohort.cases()[0], role).as_float() for role in ("pct", "ict"))
    np.testing.assert_allclose(pct, ict, atol=1)
    with pytest.raises(UsageError, match=r"^pmr: ") as error:
        import_case(tmp_path / "c", "two", images={"pmr": "s3://bucket/inbox/Mustermann"})
    assert error.value.code == "no_such_file"
    assert "Mustermann" not in error.value.message


def test_a_check_finds_strangers_and_changed_objects_in_a_bucket(store: FlakyS3) -> None:
    small_cohort()
    assert check_cohort(URL) == []
    # the copies that a training left in the cache are as good as ever
    cohort = open_cohort(URL)
    cohort.path(cohort.cases()[0], "ict")
    put = s3.client().put_object
    put(Bucket="bucket", Key="cohorts/toy/cases/case-0/notes.txt", Body=b"x")
    put(Bucket="bucket", Key="cohorts/toy/cases/case-9/pct.nii.gz", Body=b"x")
    put(Bucket="bucket", Key="cohorts/toy/cases/case-0/ict.nii.gz", Body=b"changed")
    put(Bucket="bucket", Key="cohorts/toy-2/cases/case-0/pct.nii.gz", Body=b"another cohort")
    found = {(finding.case, finding.file, finding.code) for finding in check_cohort(URL)}
    assert found == {
        ("case-0", "ict", "changed_file"),
        ("case-0", "notes.txt", "unlisted_file"),
        ("case-9", "pct.nii.gz", "unlisted_file"),
    }


def test_errors_say_what_to_mend(store: FlakyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError) as error:
        open_cohort("s3://bucket/nothing")
    assert error.value.code == "missing_cohort"
    with pytest.raises(UsageError) as usage:
        open_cohort("s3://")
    assert usage.value.code == "bad_url"
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 2)
    s3.client.cache_clear()
    for read in (open_cohort, check_cohort):
        store.faults += [("GET", "manifest.json", "503")] * 2
        with pytest.raises(WorkFailedError) as down:
            read(URL)
        assert (down.value.code, down.value.status) == ("store_unavailable", 503)
    with pytest.raises(BadInputError, match="no such bucket"):
        small_cohort("s3://nobucket/toy")
    s3.client.cache_clear()


def test_no_credentials(store: FlakyS3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        s3.client.cache_clear()
        with pytest.raises(UsageError) as error:
            open_cohort(URL)
    assert error.value.code == "no_credentials"
    s3.client.cache_clear()
