"""The relay against a real Orthanc on this machine: a study in, results back in the study of the iCT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import toy_dicom
from orthanc_server import PASSWORD, USER, Running, orthanc_server
from served import Served

from hepalign.cli.app import run as command
from hepalign.image.dicom import load_series
from hepalign.image.read import read_volume


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if shutil.which("Orthanc") is None:
        pytest.skip("no Orthanc here: install Debian's orthanc to test the relay")
    with orthanc_server(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def run(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """A command of the CLI as a site types it, its JSON."""
    with pytest.raises(SystemExit) as ended:
        command([*words, "--json"])
    assert ended.value.code == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
    return found


def test_study_in_results_back(
    served: Served,
    orthanc: Running,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("HEPALIGN_URL", served.url), ("HEPALIGN_TOKEN", served.token),
        ("HEPALIGN_ORTHANC_USER", USER), ("HEPALIGN_ORTHANC_PASSWORD", PASSWORD),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    series = {
        role: orthanc.send(
            toy_dicom.write_dicom(
                read_volume(served.images[role]), tmp_path / role, modality="MR" if role == "pmr" else "CT"
            )
        )
        for role in ("pmr", "pct", "ict")
    }
    listed = run(capfd, "relay", "list", "--orthanc", orthanc.url)["series"]
    assert {line["series"] for line in listed} == set(series.values())
    assert toy_dicom.PATIENT_ID not in json.dumps(listed)
    chosen = [word for role, found in series.items() for word in ("--series", f"{role}={found}")]
    case = run(capfd, "relay", "orthanc", "--orthanc", orthanc.url, *chosen)["case"]
    with served.client() as client:
        client.upload(case, "ict-probe-mask", served.images["ict-probe-mask"])
        client.upload(case, "pmr-tumour", served.images["pmr-tumour"])
        client.plan(case, engine="learned", wait_s=120)
        job = client.guide(case, engine="fast", wait_s=120)
        client.download(case, tmp_path / "result", job=job)
    names = ["pmr_on_ict.nii.gz", "inpct.nii.gz", "inpainted_mask.nii.gz", "overview.png"]
    wanted = [word for name in names for word in ("--artifact", name)]
    back = run(capfd, "relay", "orthanc", "--orthanc", orthanc.url, "--case", case, *wanted)
    study = orthanc.call("GET", f"/series/{series['ict']}")["ParentStudy"]
    slices = read_volume(served.images["ict"]).geometry.shape[2]
    assert back["studies"] == {study: 2 * slices + 2}
    mine = [orthanc.call("GET", f"/series/{one}") for one in orthanc.call("GET", f"/studies/{study}")["Series"]]
    made = {one["MainDicomTags"]["Modality"]: one for one in mine if one["ID"] != series["ict"]}
    assert made.keys() == {"MR", "CT", "SEG", "OT"}
    assert all(one["MainDicomTags"]["SeriesDescription"].endswith("RESEARCH USE ONLY") for one in made.values())
    packed = httpx2.get(f"{orthanc.url}/series/{made['MR']['ID']}/archive", auth=(USER, PASSWORD), timeout=60)
    (tmp_path / "back.zip").write_bytes(packed.content)
    returned = load_series(tmp_path / "back.zip")
    assert returned.identity.patient == toy_dicom.PATIENT_ID
    assert returned.volume.geometry.same_grid(read_volume(tmp_path / "result/pmr_on_ict.nii.gz").geometry)
    # A relay that is tried again stores nothing twice.
    run(capfd, "relay", "orthanc", "--orthanc", orthanc.url, "--case", case, "--artifact", names[0])
    assert len(orthanc.call("GET", f"/studies/{study}")["Series"]) == 1 + len(names)
