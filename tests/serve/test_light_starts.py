"""Who only starts the service, or names a release, waits for neither torch nor MLflow to load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "print([name for name in ('torch', 'mlflow') if name in sys.modules])"
CHOSEN_ELSEWHERE = {"HEPALIGN_RELEASE", "MLFLOW_TRACKING_URI"}


@pytest.mark.parametrize("module", ["hepalign_serve.run", "hepalign_serve.desk", "hepalign_serve.ingress"])
def test_starting_the_service_loads_no_heavy_library(module: str) -> None:
    assert _said(f"import sys, {module}; {HEAVY}") == "[]"


def test_a_computing_replica_loads_no_database_and_no_other_peoples_formats() -> None:
    unneeded = {"sqlalchemy", "cryptography", "SimpleITK", "h5py"}
    code = (
        f"import sys, hepalign_serve.replicas, hepalign_serve.pipeline; print({unneeded} & sys.modules.keys() or None)"
    )
    assert _said(code) == "None"


@pytest.mark.parametrize("folder", [True, False])
def test_a_folder_and_the_starter_are_found_without_them(tmp_path: Path, folder: bool) -> None:
    if folder:
        (tmp_path / "release.json").write_text("{}", encoding="utf-8")
    named = repr(str(tmp_path)) if folder else "None"
    resolve = f"from hepalign.tracking.resolution import resolve_release; resolve_release({named})"
    assert _said(f"import os, sys; os.chdir({str(tmp_path)!r}); {resolve}; {HEAVY}") == "[]"


def _said(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_ELSEWHERE}
    call = [sys.executable, "-c", code]
    return subprocess.run(call, check=True, capture_output=True, text=True, env=environment).stdout.strip()
