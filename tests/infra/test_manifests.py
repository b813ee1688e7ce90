"""The manifests are what their readers (KubeRay, Kubernetes, Compose, Docker) accept, and name things that exist."""

from __future__ import annotations

import importlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

BASE = Path(__file__).parents[2] / "infra/kuberay/base"


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


@pytest.fixture(scope="session")
def schemas() -> Path:
    folder = os.environ.get("HEPALIGN_KUBERAY_SCHEMAS")
    if not folder:
        pytest.skip("HEPALIGN_KUBERAY_SCHEMAS is not set: no CRD schemas here")
    return Path(folder).resolve()


@pytest.mark.parametrize("name", ["train-rayjob.yaml", "serve-rayservice.yaml"])
def test_kuberay_manifest_is_valid_against_its_schema(schemas: Path, name: str) -> None:
    for document in documents(BASE / name):
        schema = json.loads((schemas / f"ray.io_v1_{document['kind']}.json").read_text(encoding="utf-8"))
        errors = [
            f"{'/'.join(map(str, e.path))}: {e.message}" for e in Draft202012Validator(schema).iter_errors(document)
        ]
        assert errors == []


def test_the_schema_check_can_fail(schemas: Path) -> None:
    document = documents(BASE / "train-rayjob.yaml")[0]
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["templat"] = {}
    schema = json.loads((schemas / "ray.io_v1_RayJob.json").read_text(encoding="utf-8"))
    assert list(Draft202012Validator(schema).iter_errors(document))


def test_serve_config_passes_rays_own_schema_and_names_a_real_builder() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(documents(BASE / "serve-rayservice.yaml")[0]["spec"]["serveConfigV2"])
    application = ServeDeploySchema.model_validate(config).applications[0]
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))


@pytest.mark.parametrize("overlay", ["base", "overlays/dev", "overlays/prod"])
def test_job_entrypoints_name_files_of_this_repository(root: Path, overlay: str) -> None:
    for path in (root / "infra/kuberay" / overlay).glob("*.yaml"):
        for document in documents(path):
            entrypoint = document.get("spec", {}).get("entrypoint")
            if entrypoint:
                words = shlex.split(entrypoint)
                assert all((root / w).is_file() for w in words if "/" in w), entrypoint


@pytest.mark.parametrize("overlay", ["base", "overlays/dev", "overlays/prod"])
def test_kustomizations_name_what_is_there(root: Path, overlay: str) -> None:
    folder = root / "infra/kuberay" / overlay
    kustomization = documents(folder / "kustomization.yaml")[0]
    named = [*kustomization["resources"], *(p["path"] for p in kustomization.get("patches", []))]
    assert all((folder / name).exists() for name in named)
    targets = {(d["kind"], d["metadata"]["name"]) for p in BASE.glob("*.yaml") for d in documents(p) if "metadata" in d}
    for patch in kustomization.get("patches", []):
        for document in documents(folder / patch["path"]):
            assert (document["kind"], document["metadata"]["name"]) in targets


def test_every_pod_runs_without_root() -> None:
    for name in ("train-rayjob.yaml", "serve-rayservice.yaml"):
        spec = documents(BASE / name)[0]["spec"]
        cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert all(c["securityContext"]["allowPrivilegeEscalation"] is False for c in pod["containers"])
        assert cluster["authOptions"]["mode"] == "token"


def test_compose_builds_from_files_that_exist_and_publishes_only_the_edge(root: Path) -> None:
    services = yaml.safe_load((root / "infra/compose.yaml").read_text(encoding="utf-8"))["services"]
    for service in services.values():
        if "build" in service:
            assert (root / service["build"]["dockerfile"]).is_file()
    assert [name for name, service in services.items() if "ports" in service] == ["edge"]


@pytest.mark.parametrize("image", ["train", "serve"])
def test_dockerfiles_copy_what_exists_pin_their_base_and_drop_root(root: Path, image: str) -> None:
    lines = (root / f"infra/docker/{image}.Dockerfile").read_text(encoding="utf-8").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    assert any(line.startswith("USER 10001") for line in lines)
    copied = [w for line in lines if line.startswith("COPY") and "--from" not in line for w in line.split()[1:-1]]
    assert all((root / name).exists() for name in copied if not name.startswith("--"))
