"""Which code, libraries and data made a result."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hepalign.cases.cohort import Cohort

LIBRARIES = ("hepalign", "torch", "ray", "mlflow", "numpy")


def code_commit() -> str:
    """The git commit of this code; HEPALIGN_COMMIT where there is no repository (images, Ray jobs); else unknown."""
    given = os.environ.get("HEPALIGN_COMMIT")
    git = shutil.which("git")
    if given or git is None:
        return given or "unknown"
    found = subprocess.run(  # noqa: S603 - fixed words, no shell
        [git, "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def environment() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers, and where this code came from."""
    facts = {"python": platform.python_version(), "code": code_origin()}
    return facts | {name: _version(name) for name in LIBRARIES}


def code_origin() -> str:
    """The package that a Ray job brought along (its name is a digest of the code), else `installed`."""
    packages = [part for part in Path(__file__).parts if part.startswith("_ray_pkg_")]
    return packages[-1] if packages else "installed"


def training_data(cohorts: Iterable[Cohort]) -> dict[str, Any]:
    """Which data a training saw: each cohort's manifest digest, and its training and validation patients' hashes."""
    opened = list(cohorts)
    patients = {case.patient for cohort in opened for case in cohort.cases() if case.split != "test"}
    return {
        "cohorts": {cohort.name: cohort.digest for cohort in opened},
        "patients": sorted(patient_hash(patient) for patient in patients),
    }


def preprocessing(component: BaseModel) -> dict[str, Any]:
    """How a stage's config shows images to its network (voxels in mm, window in HU), which inference has to share."""
    data = getattr(component, "data", None)
    told = data.model_dump(mode="json") if isinstance(data, BaseModel) else {}
    return {key: told[key] for key in ("spacing_mm", "window_hu") if key in told}


def patient_hash(pseudonym: str) -> str:
    """A pseudonym as it may leave the cohort: enough to find the same patient in two places."""
    return hashlib.sha256(pseudonym.encode()).hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
