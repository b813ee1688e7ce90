"""Where the numbers come from: release, data, seeds, machine and versions."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hepalign
from hepalign.cases.cohort import Cohort
from hepalign.evaluation.methods import Running
from hepalign.inference.bundle import Bundle

PACKAGES = (
    "hepalign", "torch", "numpy", "scipy", "monai", "scikit-image", "SimpleITK", "antspyx", "picsl-greedy",
    "itk-elastix", "convexadam",
)  # fmt: skip

# Folders and files that a record depends on; the command line, the servers and the report are not among them.
PEERS_CODE = (
    "image", "transform", "cases", "losses", "evaluation/baselines", "evaluation/methods.py", "evaluation/pairs.py",
    "evaluation/metrics.py", "evaluation/image_metrics.py", "evaluation/unit.py", "evaluation/gallery.py",
    "evaluation/peak_memory.py",
)  # fmt: skip
READ = (".py", ".json")
CODE = (*PEERS_CODE, "nets", "inference", "evaluation/variants.py")


def provenance(cohort: Cohort, bundle: Bundle, *, split: str, running: Running) -> dict[str, Any]:
    """Everything a reader needs to run the same evaluation again."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cohort": {"name": cohort.name, "digest": cohort.digest, "split": split},
        "release": {
            "name": bundle.name,
            "digests": dict(bundle.digests),
            "config_digests": bundle.config_digests,
            "code_commit": bundle.manifest.get("code_commit"),
            "training_data": bundle.manifest.get("training_data"),
        },
        "code_digest": code_digest(CODE),
        "peers_code_digest": code_digest(PEERS_CODE),
        "seed": running.seed,
        "threads": running.threads,
        "both_ways": running.both_ways,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system(), "arch": platform.machine()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def code_digest(places: tuple[str, ...]) -> str:
    """SHA-256 over code and fitted constants in folders and files of the library: other code's record is not reused."""
    root = Path(hepalign.__file__).parent
    content = hashlib.sha256()
    for place in map(root.joinpath, sorted(places)):
        for path in sorted(p for p in place.rglob("*.*") if p.suffix in READ) if place.is_dir() else [place]:
            content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return content.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
