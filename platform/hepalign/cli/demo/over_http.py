"""The last steps of the demo: serve the champion, send a case over HTTP, and compare with the in-process answer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepalign.errors import WorkFailedError

if TYPE_CHECKING:
    from hepalign.cases.case import Case
    from hepalign.cases.cohort import Cohort

# The same code on the same machine and threads; what is left is the rounding of float32 fields in files.
PARITY_MM = 1e-3
# As many there as here: another number sums in another order.
THREADS = 1
PLAN_IMAGES = {"pmr": "pmr", "pct": "pct", "pmr_tumour": "pmr-tumour", "pct_liver": "pct-liver"}
GUIDE_IMAGES = {"ict": "ict", "ict_probe_mask": "ict-probe-mask"}


def send_case(out: Path, cohort_folder: Path) -> Mapping[str, Any]:
    """Plan and guide one test case through the running service and in this process.

    Raises:
        WorkFailedError: `parity` when the two fields differ by more than `PARITY_MM`.
    """
    from hepalign.cases.cohort import open_cohort

    cohort = open_cohort(cohort_folder)
    case = cohort.cases("test")[0]
    served = _through_service(out, cohort, case)
    difference = _largest_difference_mm(out, cohort, case, served["files"])
    if difference > PARITY_MM:
        raise WorkFailedError(
            f"the served field differs from the in-process one by {difference:.3g} mm", code="parity_broken"
        )
    shutil.copyfile(served["files"] / "overview.png", out / "overview.png")
    return {
        "case": case.id,
        "largest_difference_mm": difference,
        "result": served["result"],
        "timings": served["timings"],
    }


def _through_service(out: Path, cohort: Cohort, case: Case) -> dict[str, Any]:
    import json
    import time

    from hepalign_serve.client import Client
    from hepalign_serve.run import serving
    from hepalign_serve.settings import Lane, Replicas, Settings

    # a service of an earlier attempt has shown its token already: start with a new one
    shutil.rmtree(out / "serve", ignore_errors=True)
    lane, nets = Lane(threads=THREADS), Replicas(threads=THREADS)
    settings = Settings(
        release="models:/hepalign@champion", data_folder=out / "serve", port=0,
        plan=lane, guide=lane, synthesis=nets, inpainting=nets,
    )  # fmt: skip
    files = out / "served"
    timings = {}
    started = time.monotonic()
    with serving(settings) as service, Client(service.url, service.token) as client:
        timings["cold start"] = time.monotonic() - started
        remote = client.open_case()
        for name, images, run in (("plan", PLAN_IMAGES, client.plan), ("guide", GUIDE_IMAGES, client.guide)):
            started = time.monotonic()
            for file, role in images.items():
                if case.has(file):
                    client.upload(remote, role, cohort.path(case, file))
            job = run(remote, wait_s=600.0)
            timings[f"{name}, uploads included"] = time.monotonic() - started
        client.download(remote, files, job=job)
    result = json.loads((files / "result.json").read_text(encoding="utf-8"))
    return {"files": files, "result": result, "timings": {name: round(s, 2) for name, s in timings.items()}}


def _largest_difference_mm(out: Path, cohort: Cohort, case: Case, served: Path) -> float:
    import numpy as np
    import torch

    from hepalign.inference.bundle import load_bundle
    from hepalign.inference.guide import guide
    from hepalign.inference.planner import plan
    from hepalign.tracking.resolution import resolve_release
    from hepalign.transform.files import read_field

    torch.set_num_threads(THREADS)
    bundle = load_bundle(resolve_release("models:/hepalign@champion"))
    labels = {n: cohort.volume(case, n) for n in ("pmr_tumour", "pct_liver") if case.has(n)}
    made = plan(bundle, cohort.volume(case, "pmr"), cohort.volume(case, "pct"), labels=labels)
    result = guide(bundle, made, cohort.volume(case, "ict"), cohort.volume(case, "ict_probe_mask"))
    result.save(out / "in-process")
    ours = result.field_ict_from_pct.vectors
    theirs = read_field(served / "field_ict_from_pct.nii.gz").vectors
    return float(np.abs(ours - theirs).max())
