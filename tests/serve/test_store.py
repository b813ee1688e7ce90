"""Images and results in S3: the application with a bucket, and a second machine that has nothing yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flaky_s3
import httpx2
import numpy as np
import pytest
from flaky_s3 import FlakyS3
from served import nifti_bytes, problem, small_ct

from hepalign.cases import s3
from hepalign.cases.store import Shelf
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign_serve import housekeeping, sites
from hepalign_serve.api import create_app
from hepalign_serve.records import Records
from hepalign_serve.run import prepare
from hepalign_serve.settings import Settings
from hepalign_serve.task import Errand

URL = "s3://hospital/hepalign"


@pytest.fixture
def bucket() -> Iterator[FlakyS3]:
    with flaky_s3.bucket("hospital") as proxy:
        yield proxy
        proxy.faults.clear()
        s3.erase("hospital", s3.list_keys("hospital", ""))


class Machine:
    """One machine's ingress; machines share the database and the bucket, not the data folder."""

    def __init__(self, folder: Path, database: str) -> None:
        key = folder.parent / "identity.key"
        self.settings = Settings(data_folder=folder, database_url=database, store_url=URL, identity_key_file=key)
        self.records: Records = prepare(self.settings)
        self.app = create_app(self.settings, WarmDesk())
        self.token = ""

    def call(self, method: str, path: str, **words: Any) -> httpx2.Response:
        async def run() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers={"Authorization": f"Bearer {self.token}"}, **words)

        return asyncio.run(run())


class WarmDesk:
    async def record(self, **line: str) -> None: ...

    async def admit(self, site: str) -> bool:
        return True

    async def wake(self) -> None: ...

    async def next_end(self, seen: int) -> int:
        await asyncio.sleep(0.05)
        return seen

    async def status(self) -> dict[str, Any]:
        return {"release": {"name": "hepalign", "version": "0", "digest": "0" * 64, "networks": {}}}


@pytest.fixture
def machines(bucket: FlakyS3, tmp_path: Path) -> tuple[Machine, Machine]:
    database = f"sqlite:///{tmp_path / 'db'}"
    made = Machine(tmp_path / "one", database), Machine(tmp_path / "two", database)
    token = sites.add_site(made[0].records, "clinic")
    for machine in made:
        machine.token = token
    return made


def test_an_image_is_there_on_every_machine(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    case = one.call("POST", "/v1/cases", json={}).json()["id"]
    sent = small_ct(tmp_path)
    assert one.call("PUT", f"/v1/cases/{case}/images/pct", content=sent).status_code == 201
    assert two.call("GET", f"/v1/cases/{case}/images/pct").content == sent


def test_a_replica_elsewhere_fetches_what_it_needs(bucket: FlakyS3, tmp_path: Path) -> None:
    here, there = Shelf(tmp_path / "here", URL), Shelf(tmp_path / "there", URL)
    for name in ("images/pct.nii.gz", "jobs/plan/plan.json", "jobs/plan/sct.nii.gz"):
        path = here.folder / "cases/c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        here.keep(f"cases/c/{name}")
    errand = Errand("j", {"pct": "cases/c/images/pct.nii.gz"}, {}, "cases/c/jobs/j/attempt-1", "cases/c/jobs/plan")
    task = errand.here(there)
    assert task.images["pct"].read_text() == "images/pct.nii.gz"
    assert task.plan_folder is not None
    assert sorted(path.name for path in task.plan_folder.iterdir()) == ["plan.json", "sct.nii.gz"]
    with pytest.raises(BadInputError):
        there.fetch("cases/c/images/pmr.nii.gz")


def test_erasing_takes_every_object(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    case, other = (one.call("POST", "/v1/cases", json={}).json()["id"] for _ in range(2))
    for each in (case, other):
        assert one.call("PUT", f"/v1/cases/{each}/images/ict", content=small_ct(tmp_path)).status_code == 201
    assert two.call("DELETE", f"/v1/cases/{case}").status_code == 204
    assert [key for key in s3.list_keys("hospital", "") if case in key] == []
    assert [key for key in s3.list_keys("hospital", "") if other in key]
    # what a job left after its case was erased is found and swept, also where it was kept
    (two.settings.data_folder / "cases" / case).mkdir()
    (two.settings.data_folder / "cases" / case / "late.json").write_text("{}")
    Shelf(two.settings.data_folder, URL).keep(f"cases/{case}/late.json")
    assert housekeeping.sweep(one.records, Shelf(one.settings.data_folder, URL)) == 1
    assert [key for key in s3.list_keys("hospital", "") if case in key] == []


def test_a_refused_image_leaves_no_object_and_takes_none_away(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, two = machines
    case = one.call("POST", "/v1/cases", json={}).json()["id"]
    path = f"/v1/cases/{case}/images/ict-liver"
    livers = []
    for size in (4, 5, 6):
        data = np.zeros((12, 12, 12), np.uint8)
        data[:size] = 1
        far = Geometry.from_spacing(data.shape, 6.0, origin_mm=(9000.0, 9000.0, 9000.0))
        livers.append(nifti_bytes(Volume(data, far), tmp_path))
    assert [one.call("PUT", path, content=liver).status_code for liver in livers[:2]] == [201, 201]
    assert one.call("PUT", f"/v1/cases/{case}/images/ict", content=small_ct(tmp_path)).status_code == 201
    kept = s3.list_keys("hospital", "")
    # The first liver may be a job's; the other machine has none of the files yet.
    for sent in (livers[0], livers[2]):
        problem(two.call("PUT", path, content=sent), 422, "frame_mismatch")
        assert s3.list_keys("hospital", "") == kept


def test_fault_68_object_store_away(machines: tuple[Machine, Machine], bucket: FlakyS3, tmp_path: Path) -> None:
    one, _ = machines
    case = one.call("POST", "/v1/cases", json={}).json()["id"]
    assert one.call("GET", "/readyz").status_code == 200
    bucket.faults += [("HEAD", "", "503")] * s3.REQUEST_ATTEMPTS
    problem(one.call("GET", "/readyz"), 503, "not_ready")
    bucket.faults.clear()
    bucket.faults += [("PUT", ".nii.gz", "503")] * s3.REQUEST_ATTEMPTS
    problem(one.call("PUT", f"/v1/cases/{case}/images/ict", content=small_ct(tmp_path)), 503, "storage_unavailable")
    assert not [path for path in (one.settings.data_folder / "cases").rglob("*") if path.is_file()]
    assert one.call("GET", f"/v1/cases/{case}").json()["images"] == []
    bucket.faults.clear()
    assert one.call("PUT", f"/v1/cases/{case}/images/ict", content=small_ct(tmp_path)).status_code == 201
    assert one.call("GET", "/readyz").status_code == 200
