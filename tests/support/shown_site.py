"""The application over HTTP in this process, with a case whose results are the phantom's truth: no Ray, no network."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from scipy import ndimage
from sqlalchemy import select

from hepalign.cases.phantom.make import PhantomCase, make_case
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.transform.warp import warp
from hepalign_serve import sites
from hepalign_serve.api import create_app
from hepalign_serve.records import Artifact, CaseRow, Image, Job, Records
from hepalign_serve.run import prepare
from hepalign_serve.settings import Settings

SHAPE = (48, 44, 36)
SITE = "clinic"
LABELS = {"1": "liver", "2": "tumour 1"}
MARGINS = {"0_mm": 1.0, "5_mm": 0.83, "10_mm": 0.41}


class Desk:
    """Accepts everything; a release is warm, nobody works."""

    async def admit(self, site: str) -> bool:
        return True

    async def record(self, **line: str) -> None: ...

    async def wake(self) -> None: ...

    async def next_end(self, seen: int) -> int:
        await asyncio.sleep(0.05)
        return seen

    async def status(self) -> dict[str, Any]:
        return {"release": {"name": "hepalign", "version": "7", "digest": "0" * 64, "networks": {}}}


@dataclass
class Shown:
    """The running site: its address, a token, and the case whose results are known."""

    url: str
    token: str
    records: Records
    folder: Path
    phantom: PhantomCase
    case: str = "c0ffee00aa"

    def another_case(self) -> Shown:
        """The site with a case that is planned and nothing else, for a test that changes it."""
        made = replace(self, case=secrets.token_hex(12))
        with self.records.write() as session:
            session.add(CaseRow(id=made.case, site_id=SITE, created=time.time(), touched=time.time()))
        plan = made.add_job("plan", "succeeded", result={"plan_digest": "plan-1", "quality": {"status": "accept"}})
        made.keep(plan, {"pmr.nii.gz": self.phantom.volumes["pmr"]})
        return made

    def labels(self) -> Volume:
        """The true label map on the iCT: the liver, and the largest of its tumours."""
        liver = self.phantom.volumes["ict_liver"].as_mask().astype(np.uint8)
        pieces, _ = ndimage.label(self.phantom.volumes["ict_tumour"].as_mask())
        liver[pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])] = 2
        return self.phantom.volumes["ict"].with_data(liver)

    def add_job(self, kind: str, state: str, **words: Any) -> str:
        """A job of the case, whoever made it."""
        now = time.time()
        known: dict[str, Any] = {
            "id": f"{kind}{time.monotonic_ns()}", "case_id": self.case, "site_id": SITE, "kind": kind, "state": state,
            "request": {"images": self.used()}, "created": now, "started": now, "finished": now, "result": None,
            "problem": None, "lease_until": now + 600,
        }  # fmt: skip
        with self.records.write() as session:
            session.add(Job(**known | words))
        return str((known | words)["id"])

    def change_job(self, job: str, **words: Any) -> None:
        """What a replica would write."""
        with self.records.write() as session:
            row = session.get_one(Job, job)
            for name, value in words.items():
                setattr(row, name, value)

    def queued(self) -> str | None:
        """The job that waits."""
        with self.records.read() as session:
            found = session.scalars(select(Job).where(Job.state == "queued")).first()
            return None if found is None else found.id

    def used(self) -> dict[str, str]:
        """The images as jobs name them."""
        return {role: f"cases/{self.case}/images/{role}.nii.gz" for role in ("pmr", "pct", "ict", "ict_probe_mask")}

    def keep(self, job: str, files: Mapping[str, Volume]) -> None:
        """A job's artifacts."""
        for name, volume in files.items():
            path = f"cases/{self.case}/jobs/{job}/{name}"
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_nifti(volume, self.folder / path)
            digest = hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
            with self.records.write() as session:
                session.add(
                    Artifact(job_id=job, name=name, case_id=self.case, path=path, sha256=digest, bytes_stored=1)
                )


def result_of(status: str) -> dict[str, Any]:
    """What a guide says of itself."""
    reasons = {"accept": [], "review": ["a tumour lies in the inpainted region: it was not seen"]}
    return {
        "release": {"name": "hepalign", "version": "7"},
        "quality": {"status": status, "reasons": reasons.get(status, ["the field folds"]), "method": "network"},
        "timings": {"compute_s": 4.2},
        "plan_digest": "plan-1",
        "warnings": [],
        "labels": LABELS,
        "uncertainty_mm": {"tumour 1": 2.46},
        "margins": {"tumour 1": MARGINS},
        "tumour_in_hole": status == "review",
    }


@contextmanager
def shown_site(folder: Path) -> Iterator[Shown]:
    """Serves until the block ends."""
    settings = Settings(data_folder=folder)
    records = prepare(settings)
    token = sites.add_site(records, SITE)
    config = uvicorn.Config(create_app(settings, Desk()), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    shown = Shown(f"http://127.0.0.1:{port}", token, records, folder, make_case(5, shape=SHAPE, spacing_mm=7.0))
    try:
        _fill(shown)
        yield shown
    finally:
        server.should_exit = True
        thread.join(10)
        records.engine.dispose()


def _fill(shown: Shown) -> None:
    volumes, fields = shown.phantom.volumes, shown.phantom.fields
    with shown.records.write() as session:
        session.add(CaseRow(id=shown.case, site_id=SITE, created=time.time(), touched=time.time()))
        for role, path in shown.used().items():
            (shown.folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_nifti(volumes[role], shown.folder / path)
            facts = {"shape": list(SHAPE), "spacing_mm": [7.0, 7.0, 7.0], "warnings": []}
            session.flush()
            session.add(
                Image(case_id=shown.case, role=role, path=path, sha256=role, bytes_stored=1, facts=facts, created=0.0)
            )
    plan = shown.add_job("plan", "succeeded", result={"plan_digest": "plan-1", "quality": {"status": "accept"}})
    shown.keep(plan, {"pmr.nii.gz": volumes["pmr"], "pct.nii.gz": volumes["pct"]})
    mask = volumes["ict_probe_mask"]
    files = {
        "pmr_on_ict.nii.gz": warp(volumes["pmr"], fields["truth_field_ict_from_pmr"]),
        "pct_on_ict.nii.gz": warp(volumes["pct"], fields["truth_field_ict_from_pct"]),
        "inpct.nii.gz": volumes["ict_clean"],
        "inpainted_mask.nii.gz": mask.with_data(mask.as_mask().astype(np.uint8)),
        "labels_on_ict.nii.gz": shown.labels(),
    }
    for status in ("reject", "review", "accept"):
        job = shown.add_job("guide", "succeeded", result=result_of(status))
        shown.keep(job, files)
