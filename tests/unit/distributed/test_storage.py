"""Checkpoints in storage that no training knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from hepalign.distributed.storage import bring_file, keep_file, remove_strays, storage_uri


def filled(files: fs.FileSystem, run: str) -> set[str]:
    """A run of two kept checkpoints, two that nobody knows (one of them half copied), and its other files."""
    there = {
        "checkpoint_1/common.pt", "checkpoint_1/best/toy.json", "checkpoint_2/common.pt",
        "checkpoint_3/rank-1.pt", "checkpoint_4/common.pt", "checkpoint_4/best/toy.json",
        "checkpoint_manager_snapshot.json", "notes/checkpoint_5",
    }  # fmt: skip
    for name in there:
        files.create_dir(str(PurePosixPath(run, name).parent))
        with files.open_output_stream(f"{run}/{name}") as file:
            file.write(b"content")
    return there


def listed(files: fs.FileSystem, run: str) -> set[str]:
    found = files.get_file_info(fs.FileSelector(run, recursive=True))
    return {file.path.removeprefix(f"{run}/") for file in found if file.type == fs.FileType.File}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    access = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **access}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs"
    server.stop()


@pytest.mark.parametrize("place", ["bucket", "tmp_path"])
def test_what_a_lost_worker_left_goes_and_what_is_kept_stays(place: str, request: pytest.FixtureRequest) -> None:
    files, root = fs.FileSystem.from_uri(storage_uri(str(request.getfixturevalue(place))))
    run = f"{root}/liver"
    there = filled(files, run)
    other = filled(files, f"{run}-2")
    remove_strays(files, [f"{run}/checkpoint_1", f"{run}/checkpoint_2"])
    strays = {name for name in there if name.startswith(("checkpoint_3", "checkpoint_4"))}
    assert len(strays) == 3
    assert listed(files, run) == there - strays
    assert listed(files, f"{run}-2") == other


@pytest.mark.parametrize("place", ["bucket", "tmp_path"])
def test_a_runs_own_file_is_kept_beside_its_checkpoints_and_brought_where_it_is_absent(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = str(request.getfixturevalue(place))
    here, there = tmp_path / "here/facts.json", tmp_path / "there/facts.json"
    bring_file(storage, "liver", there)
    assert not there.exists()
    here.parent.mkdir()
    for content in ("first", "second"):
        here.write_text(content, encoding="utf-8")
        keep_file(storage, "liver", here)
    bring_file(storage, "liver", there)
    assert there.read_text(encoding="utf-8") == "second"
    there.write_text("its own", encoding="utf-8")
    bring_file(storage, "liver", there)
    assert there.read_text(encoding="utf-8") == "its own"


def test_without_any_that_is_kept_nothing_goes(tmp_path: Path) -> None:
    files, run = fs.LocalFileSystem(), f"{tmp_path}/liver"
    there = filled(files, run)
    remove_strays(files, [])
    assert listed(files, run) == there
