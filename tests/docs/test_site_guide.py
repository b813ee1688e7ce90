"""The site-integration guide, block by block as it is written, against a really running service and a real Orthanc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pydicom
import pytest
import toy_dicom
from orthanc_server import PASSWORD, USER, orthanc_server
from served import Served

from hepalign.image.read import read_volume

PAGE = Path(__file__).parents[2] / "docs/tutorials/site-integration.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """A bash script with the guide's words; what it printed."""
    words = ["bash", "-euo", "pipefail", "-c", script.replace(".venv/bin/", "")]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def desk(served: Served, tmp_path: Path) -> Path:
    """A folder as the guide's reader has it: a patient's images, and the operator's data folder."""
    for role, name in (("pmr", "mr"), ("pct", "pct"), ("ict", "ict")):
        modality = "MR" if role == "pmr" else "CT"
        toy_dicom.write_dicom(read_volume(served.images[role]), tmp_path / name, modality=modality)
        shutil.copy(served.images[role], tmp_path / f"{role}.nii.gz")
    toy_dicom.zipped(tmp_path / "ict", tmp_path / "ict.zip")
    shutil.copy(served.images["pmr-tumour"], tmp_path / "tumour.nii.gz")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/serve").symlink_to(served.data_folder)
    return tmp_path


def test_the_guide_runs_as_it_is_written(served: Served, desk: Path) -> None:
    if shutil.which("Orthanc") is None:
        pytest.skip("no Orthanc here: install Debian's orthanc to run the guide")
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    surroundings = os.environ | {"PATH": paths, "HEPALIGN_URL": served.url}
    add, rotate = blocks("console")
    surroundings["HEPALIGN_TOKEN"] = run(add, desk, surroundings).split()[-1]
    with orthanc_server(desk / "orthanc") as orthanc:
        surroundings |= {"ORTHANC": orthanc.url, "HEPALIGN_ORTHANC_USER": USER, "HEPALIGN_ORTHANC_PASSWORD": PASSWORD}
        for role, name in (("MR", "mr"), ("PCT", "pct"), ("ICT", "ict")):
            surroundings[f"{role}_SERIES"] = orthanc.send(desk / name)
        scripts = blocks("bash")
        http = next(script for script in scripts if "Idempotency-Key" in script)
        told = run("\n".join(script for script in scripts if script != http), desk, surroundings)
        assert "guide succeeded, " in told
        assert len(orthanc.call("GET", "/studies")) == 3
    with zipfile.ZipFile(desk / "dicom/pmr_on_ict.zip") as archive, archive.open(archive.namelist()[0]) as file:
        assert pydicom.dcmread(file).PatientID == toy_dicom.PATIENT_ID
    told = run(http, desk, surroundings)
    assert told.count("event: state") > 0
    assert zipfile.is_zipfile(desk / "pmr_on_ict.zip")
    (desk / "guide.py").write_text(blocks("python")[0], encoding="utf-8")
    assert run("python guide.py", desk, surroundings).strip() in ("accept", "review", "reject")
    assert (desk / "from-python/result.json").is_file()
    assert run(rotate, desk, surroundings).split()[-1] != surroundings["HEPALIGN_TOKEN"]
