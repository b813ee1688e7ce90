"""A case over HTTP gives what the same calls give in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from served import Served

from hepalign.image.read import read_volume
from hepalign.inference.bundle import load_bundle
from hepalign.inference.guide import guide
from hepalign.inference.planner import plan
from hepalign.transform.files import read_field

TOLERANCE_MM = 1e-4


def test_http_and_in_process_fields_agree(served: Served, tmp_path: Path) -> None:
    case = served.newly_planned_case()
    with served.client() as client:
        job = client.guide(case, engine="fast", wait_s=60)
        job = client.wait(job["id"])
        client.download(case, tmp_path, job=job)
    volumes = {role: read_volume(path) for role, path in served.images.items()}
    bundle = load_bundle(served.release)
    planned = plan(bundle, volumes["pmr"], volumes["pct"], engine="learned")
    mask = volumes["ict-probe-mask"].with_data(volumes["ict-probe-mask"].as_mask())
    expected = guide(bundle, planned, volumes["ict"], mask, engine="fast")
    for name in ("field_ict_from_pct", "field_ict_from_pmr"):
        over_http = read_field(tmp_path / f"{name}.nii.gz")
        in_process = getattr(expected, name)
        assert over_http.geometry.same_grid(in_process.geometry)
        np.testing.assert_allclose(over_http.vectors, in_process.vectors, atol=TOLERANCE_MM)
    assert job["result"]["quality"]["status"] == expected.quality["status"]
    assert {"overview.png", "result.json", "inpct.nii.gz"} <= set(job["artifacts"])
