"""Releases: built from three trainings, registered in MLflow as one model, and found again by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from hepalign.errors import BadInputError
from hepalign.inference.bundle import RELEASE_FILE, STAGES, build_bundle
from hepalign.tracking import ledger
from hepalign.tracking.address import CANDIDATE, CHAMPION, MODEL, exists, tracking_uri
from hepalign.tracking.model_card import TRAININGS_FILE, write_model_card
from hepalign.tracking.registry import client, ensure_experiment, reachable
from hepalign.tracking.release_folder import GATE_FILE, read_manifest, release_sha256
from hepalign.tracking.resolution import resolve_release
from hepalign.tracking.runs import TRAINING, dotted

RUNS_EXPERIMENT = f"{MODEL}/releases"
# models:/hepalign@champion, models:/hepalign/3
MODEL_URI = re.compile(rf"models:/{MODEL}(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))$")


def build_release(folders: Mapping[str, Path], out: Path, version: str = "0") -> Path:
    """Pin three trainings' networks as one release folder; a finished one of the same weights is left as it is.

    Args:
        folders: stage to the training's folder, as `distributed.workers.train` leaves it.
        out: the release's folder.
        version: what results quote.

    Raises:
        BadInputError: `weights_missing`, `release_exists` when `out` holds another release.
    """
    trainings = {stage: _training(folder) for stage, folder in folders.items()}
    commits = sorted({str(training.get("facts", {}).get("commit", "unknown")) for training in trainings.values()})
    data = [training.get("data", {}) for training in trainings.values()]
    # without a training's own word nobody knows whom its network has seen: the gate refuses such a release
    told = all("patients" in seen for seen in data)
    patients = {"patients": sorted({patient for seen in data for patient in seen["patients"]})} if told else {}
    description: dict[str, Any] = {
        "name": MODEL,
        "version": version,
        "code_commit": "+".join(commits),
        "preprocessing": {stage: training.get("preprocessing", {}) for stage, training in trainings.items()},
        "training_data": {
            "cohorts": {name: digest for seen in data for name, digest in seen.get("cohorts", {}).items()},
            **patients,
        },
    }
    before = read_manifest(out) if (out / RELEASE_FILE).is_file() else None
    created = datetime.fromisoformat(before["created"]) if before else datetime.now(UTC)
    with tempfile.TemporaryDirectory() as scratch:
        made = build_bundle(Path(scratch) / "release", folders, created=created, **description)
        if before is not None and before != read_manifest(made):
            raise BadInputError(f"{out.name} holds another release: give another folder", code="release_exists")
        if before is None:
            (made / TRAININGS_FILE).write_text(json.dumps(trainings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            write_model_card(made)
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made, out, dirs_exist_ok=True)
    return out


def fetch_training(uri: str, *, cache: Path | None = None) -> Path:
    """The folder of a training that MLflow keeps, for `build_release`.

    Args:
        uri: `runs:/ID`.

    Raises:
        WorkFailedError: `tracking_unreachable`, also when there is no such run or it has not ended.
    """
    kept = (cache or _cache_folder()) / "trainings" / uri.removeprefix("runs:/").strip("/")
    if not (kept / "training.json").is_file():
        with reachable(f"fetch {uri}"):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                client()
                fetched = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{uri.rstrip('/')}/{TRAINING}", dst_path=scratch, tracking_uri=tracking_uri()
                )
                Path(fetched).rename(kept)
    return kept


def register_release(folder: Path) -> str:
    """Put a release folder into MLflow as a version of `hepalign`, with the alias `candidate`; returns the version.

    A release that is registered already keeps its version.

    Raises:
        BadInputError: `release_missing`.
        WorkFailedError: `tracking_unreachable`.
    """
    manifest = read_manifest(folder)
    digest = release_sha256(folder)
    with reachable("register the release"):
        api = client()
        known = find_version(api, digest)
        if known is not None:
            return str(known.version)
        try:
            api.create_registered_model(MODEL)
        except MlflowException:
            api.get_registered_model(MODEL)
        run = api.create_run(ensure_experiment(api, RUNS_EXPERIMENT), run_name=f"release {manifest['version']}")
        with tempfile.TemporaryDirectory() as scratch:
            packed = Path(scratch) / "model"
            pack(folder, packed)
            api.log_artifacts(run.info.run_id, str(packed), "model")
        api.set_terminated(run.info.run_id)
        tags = {"release_sha256": digest, "release_version": str(manifest["version"])}
        source = f"{run.info.artifact_uri}/model"
        made = api.create_model_version(MODEL, source, run.info.run_id, tags=tags)
        api.set_registered_model_alias(MODEL, CANDIDATE, made.version)
        return str(made.version)


def pack(folder: Path, target: Path) -> None:
    """The release as an MLflow model, from code, so that nothing is pickled."""
    mlflow.pyfunc.save_model(
        path=str(target),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"release": str(folder)},
        pip_requirements=["hepalign"],
        signature=ModelSignature(
            Schema([ColSpec("string", "cohort"), ColSpec("string", "case"), ColSpec("string", "out", required=False)])
        ),
    )


def find_version(api: MlflowClient, digest: str) -> ModelVersion | None:
    """The registered version of a release, if there is one."""
    found = api.search_model_versions(f"name = '{MODEL}' and tags.release_sha256 = '{digest}'")
    return found[0] if found else None


def fetch_registered(uri: str, *, cache: Path | None = None, verify: bool = False) -> Path:
    """`resolve_release` of what MLflow keeps."""
    named = MODEL_URI.match(uri)
    with reachable(f"find {uri}"):
        if named is None:
            return _download(uri, None, cache)
        api = client()
        version = _version(api, named)
        digest = version.tags.get("release_sha256", "")
        if named["alias"] == CHAMPION:
            ledger.verify_champion(api, str(version.version), digest)
        elif verify:
            ledger.verify_promoted(api, str(version.version), digest)
        folder = _download(api.get_model_version_download_uri(MODEL, str(version.version)), digest, cache)
        _fetch_gate(api, version, folder)
        return folder


def list_releases() -> list[dict[str, Any]]:
    """The registered releases, the newest first."""
    if not exists():
        return []
    with reachable("list the releases"):
        api = client()
        aliases: dict[str, list[str]] = {}
        versions = api.search_model_versions(f"name = '{MODEL}'")
        if versions:
            for alias, version in api.get_registered_model(MODEL).aliases.items():
                aliases.setdefault(str(version), []).append(alias)
    return [
        {
            "version": str(version.version),
            "release": version.tags.get("release_version", ""),
            "aliases": ", ".join(sorted(aliases.get(str(version.version), []))),
            "gate": version.tags.get("gate", "not judged"),
            "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            "sha256": version.tags.get("release_sha256", "")[:12],
        }
        for version in sorted(versions, key=lambda found: -int(found.version))
    ]


def show_release(release: str) -> dict[str, Any]:
    """A release's manifest, with its gate report where it has one."""
    folder = resolve_release(release)
    shown = read_manifest(folder) | {"sha256": release_sha256(folder)}
    if (folder / GATE_FILE).is_file():
        shown["gate"] = json.loads((folder / GATE_FILE).read_text(encoding="utf-8"))
    return shown


def diff_releases(first: str, second: str) -> list[dict[str, Any]]:
    """What differs between two releases, key by key, the networks' settings included."""
    left, right = (_described(resolve_release(release)) for release in (first, second))
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [{"key": key, "first": left.get(key), "second": right.get(key)} for key in keys]


def _described(folder: Path) -> dict[str, Any]:
    configs = {stage: json.loads((folder / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES}
    return dotted(read_manifest(folder) | {"config": configs})


def _version(api: MlflowClient, named: re.Match[str]) -> ModelVersion:
    try:
        if named["alias"]:
            return api.get_model_version_by_alias(MODEL, named["alias"])
        return api.get_model_version(MODEL, named["version"])
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            wanted = named["alias"] or named["version"]
            raise BadInputError(
                f"{MODEL} has no release {wanted}: see `hepalign release list`", code="no_release"
            ) from error
        raise


def _download(uri: str, digest: str | None, cache: Path | None) -> Path:
    """The release in an MLflow artifact; fetched once and kept by its digest."""
    kept = (cache or _cache_folder()) / "releases"
    if digest and (kept / digest[:16] / RELEASE_FILE).is_file():
        return kept / digest[:16]
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        fetched = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=tracking_uri())
        found = sorted(Path(fetched).rglob(RELEASE_FILE))
        if not found:
            raise BadInputError("that MLflow artifact holds no release", code="release_missing")
        actual = release_sha256(found[0].parent)
        if digest and actual != digest:
            raise BadInputError(
                "the release's manifest is not the one that was registered: it was altered in the artifact store",
                code="weights_digest",
            )
        target = kept / actual[:16]
        if not target.exists():
            found[0].parent.rename(target)
    return target


def _fetch_gate(api: MlflowClient, version: ModelVersion, folder: Path) -> None:
    """Put the gate report, which was made after the release, beside the fetched release."""
    stored = folder / GATE_FILE
    passed = stored.is_file() and json.loads(stored.read_text(encoding="utf-8")).get("passed")
    if passed or "gate" not in version.tags or not version.run_id:
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        Path(api.download_artifacts(version.run_id, GATE_FILE, scratch)).replace(stored)


def _cache_folder() -> Path:
    given = os.environ.get("HEPALIGN_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "hepalign"


def _training(folder: Path) -> dict[str, Any]:
    stored = folder / "training.json"
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    metrics = folder / "metrics.json"
    return found | ({"metrics": json.loads(metrics.read_text(encoding="utf-8"))} if metrics.is_file() else {})
