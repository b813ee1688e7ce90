"""The manifests are what their readers (KubeRay, Kubernetes, Compose, Docker) accept, and name things that exist."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml
from jsonschema import Draft202012Validator

from hepalign_serve.settings import Settings

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra/kuberay"
OVERLAYS = ("base", "overlays/dev", "overlays/prod")
JOB = KUBERAY / "jobs/train-rayjob.yaml"
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


def built(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a folder whose patches are JSON patches."""
    kustomization = documents(folder / "kustomization.yaml")[0]
    found: list[Document] = []
    for name in kustomization["resources"]:
        found += built(folder / name) if (folder / name).is_dir() else documents(folder / name)
    for patch in kustomization.get("patches", []):
        kind, name = patch["target"]["kind"], patch["target"]["name"]
        hits = [n for n, d in enumerate(found) if (d["kind"], d["metadata"]["name"]) == (kind, name)]
        assert len(hits) == 1, f"{patch['path']} must change exactly one {kind} {name}"
        # a document's anchors are shared parts: a patch must change one of them only
        alone = json.loads(json.dumps(found[hits[0]]))
        found[hits[0]] = jsonpatch.apply_patch(alone, documents_list(folder / patch["path"]))
    for generator in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    for document in found:
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = kustomization["namespace"]
    return found


def documents_list(path: Path) -> list[Document]:
    operations = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(operations, list)
    return operations


ALL = {overlay: built(KUBERAY / overlay) for overlay in OVERLAYS} | {"job": documents(JOB)}


def of_kind(where: str, *kinds: str) -> list[Document]:
    return [document for document in ALL[where] if document["kind"] in kinds]


def cluster_of(document: Document) -> Document:
    spec = document["spec"]
    found: Document = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


RAY = [(where, document) for where in ALL for document in of_kind(where, "RayCluster", "RayJob", "RayService")]
RAY_IDS = [f"{where}-{document['kind']}" for where, document in RAY]


def pods(where: str) -> Iterator[tuple[str, Document]]:
    """Every pod template's spec, with a name to call it by."""
    for document in of_kind(where, "RayCluster", "RayJob", "RayService"):
        cluster = cluster_of(document)
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            yield f"{document['kind']}/{group.get('groupName', 'head')}", group["template"]["spec"]
        if "submitterPodTemplate" in document["spec"]:
            yield "submitter", document["spec"]["submitterPodTemplate"]["spec"]
    for document in of_kind(where, "Deployment", "StatefulSet"):
        yield document["metadata"]["name"], document["spec"]["template"]["spec"]


@pytest.fixture(scope="session")
def schemas() -> Path:
    folder = os.environ.get("HEPALIGN_KUBERAY_SCHEMAS")
    if not folder:
        pytest.skip("HEPALIGN_KUBERAY_SCHEMAS is not set: no CRD schemas here")
    return Path(folder).resolve()


def violations(schemas: Path, document: Document) -> list[str]:
    schema = json.loads((schemas / f"ray.io_v1_{document['kind']}.json").read_text(encoding="utf-8"))
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, e.path))}: {e.message[:300]}" for e in errors]


@pytest.mark.parametrize(("where", "document"), RAY, ids=RAY_IDS)
def test_every_ray_manifest_is_valid_against_its_crd(schemas: Path, where: str, document: Document) -> None:
    assert violations(schemas, document) == []


def test_the_schema_check_can_fail(schemas: Path) -> None:
    document = json.loads(json.dumps(of_kind("base", "RayCluster")[0]))
    document["spec"]["headGroupSpec"]["template"]["spec"]["restartPolicies"] = "Never"
    assert violations(schemas, document)


def test_the_three_kinds_are_there() -> None:
    assert {document["kind"] for _, document in RAY} == {"RayCluster", "RayJob", "RayService"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_what_this_test_builds(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays are built by this test only")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERAY / overlay)], capture_output=True, text=True, timeout=60, check=True
    )
    theirs = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    ours = {(d["kind"], d["metadata"]["name"]): d for d in ALL[overlay]}
    assert theirs == ours


@pytest.mark.parametrize(("where", "document"), RAY, ids=RAY_IDS)
def test_clusters_scale_by_autoscaler_v2_and_ask_for_a_token(where: str, document: Document) -> None:
    import ray

    cluster = cluster_of(document)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "hepalign-ray"}
    assert cluster["rayVersion"] == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    # what autoscaler v2 asks for
    assert {group["template"]["spec"]["restartPolicy"] for group in groups} == {"Never"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_outlives_its_head_keeps_its_state_in_redis(overlay: str) -> None:
    for document in of_kind(overlay, "RayCluster", "RayService"):
        options = cluster_of(document)["gcsFaultToleranceOptions"]
        host, _, port = options["redisAddress"].partition(":")
        service = next(d for d in of_kind(overlay, "Service") if d["metadata"]["name"] == host)
        assert service["spec"]["ports"][0]["port"] == int(port)
        assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "hepalign-redis"


def test_training_has_gpu_and_cpu_nodes() -> None:
    for document in [*of_kind("base", "RayCluster"), *of_kind("job", "RayJob")]:
        groups = {group["groupName"]: group["template"]["spec"] for group in cluster_of(document)["workerGroupSpecs"]}
        assert groups.keys() == {"gpu", "cpu"}
        assert groups["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert groups["gpu"]["tolerations"]
        assert "nvidia.com/gpu" not in groups["cpu"]["containers"][0]["resources"]["limits"]
    assert [group["groupName"] for group in of_kind("overlays/dev", "RayCluster")[0]["spec"]["workerGroupSpecs"]] == [
        "cpu"
    ]


@pytest.mark.parametrize("where", list(ALL))
def test_every_pod_fits_the_restricted_standard(where: str) -> None:
    """The namespace enforces it: a pod that does not fit is never started."""
    for name, pod in pods(where):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"].keys() == {"requests", "limits"}, name
    for _, document in RAY:
        sidecar = cluster_of(document)["autoscalerOptions"]["securityContext"]
        assert (sidecar["allowPrivilegeEscalation"], sidecar["capabilities"]) == (False, {"drop": ["ALL"]})


@pytest.mark.parametrize("where", list(ALL))
def test_every_pod_has_probes_and_a_pinned_image(where: str) -> None:
    for name, pod in pods(where):
        for container in pod["containers"]:
            assert re.search(r":\d", container["image"]), name
            assert name == "submitter" or "readinessProbe" in container, name


@pytest.mark.parametrize("where", list(ALL))
def test_what_pods_mount_and_read_is_there(where: str) -> None:
    """Config maps and claims stand in the same overlay; secrets in the table of the how-to."""
    maps = {d["metadata"]["name"] for d in of_kind(where, "ConfigMap")}
    claims = {d["metadata"]["name"] for d in of_kind(where, "PersistentVolumeClaim")}
    page = (ROOT / "docs/how-to/kubernetes.md").read_text(encoding="utf-8")
    for name, pod in pods(where):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= volumes.keys() | {"state"}, name
            for source in container.get("envFrom", []):
                assert f"`{source['secretRef']['name']}`" in page
        for volume in volumes.values():
            if "configMap" in volume:
                made = volume["configMap"]["name"]
                assert made in maps or f"create configmap {made}" in page, made
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert f"`{volume['secret']['secretName']}`" in page


def test_serve_config_passes_rays_own_schema_and_names_a_real_builder_and_sound_settings() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = of_kind("base", "RayService")[0]
    application = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])).applications[0]
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))
    mounted = Path(application.args["config"])
    assert [m["mountPath"] for _, pod in pods("base") for c in pod["containers"] for m in c.get("volumeMounts", [])
            if m["name"] == "settings"] == [str(mounted.parent)] * 2  # fmt: skip
    settings = Settings.model_validate(yaml.safe_load((KUBERAY / "base" / mounted.name).read_text(encoding="utf-8")))
    assert settings.database_url.startswith("postgresql")
    # the replicas fit the smallest number of pods
    lanes = (settings.plan, settings.guide, settings.synthesis, settings.inpainting)
    asked = sum(lane.replicas * lane.num_cpus for lane in lanes) + settings.ingress_replicas
    for overlay in OVERLAYS:
        worker = cluster_of(of_kind(overlay, "RayService")[0])["workerGroupSpecs"][0]
        cpus = int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) * worker["minReplicas"]
        assert asked <= cpus, overlay


def test_an_upgrade_starts_a_second_cluster_and_keeps_the_first_for_its_jobs() -> None:
    for overlay in OVERLAYS:
        spec = of_kind(overlay, "RayService")[0]["spec"]
        settings = Settings.model_validate(yaml.safe_load((KUBERAY / "base/serve.yaml").read_text(encoding="utf-8")))
        assert spec["upgradeStrategy"]["type"] == "NewCluster"
        assert spec["rayClusterDeletionDelaySeconds"] >= settings.guide.deadline_s
        worker = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
        assert worker["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert worker["terminationGracePeriodSeconds"] >= settings.guide.deadline_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_comes_in_but_what_is_named(overlay: str) -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in of_kind(overlay, "NetworkPolicy")}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    rules = policies["ray"]["ingress"]
    open_to_edge = [
        [port["port"] for port in rule["ports"]]
        for rule in rules
        for source in rule["from"]
        if source.get("podSelector", {}).get("matchLabels") == {"app": "hepalign-edge"}
    ]
    assert open_to_edge == [[8000]]
    operator = next(rule for rule in rules if "kuberay-operator" in json.dumps(rule))
    assert {port["port"] for port in operator["ports"]} >= {8265, 52365}
    outside = [d["metadata"]["name"] for d in of_kind(overlay, "Service") if d["spec"].get("type") == "LoadBalancer"]
    assert outside == ["edge"]


def test_the_edges_upstream_is_a_service() -> None:
    upstream = re.search(r"server (\w+):8000", (ROOT / "infra/edge/nginx.conf").read_text(encoding="utf-8"))
    assert upstream
    service = next(d for d in of_kind("base", "Service") if d["metadata"]["name"] == upstream[1])
    current = of_kind("base", "RayService")[0]["metadata"]["name"]
    assert service["spec"]["externalName"].startswith(f"{current}-serve-svc.hepalign.")


def test_the_jobs_words_are_those_of_the_command_line() -> None:
    from hepalign.config import load_config

    words = shlex.split(documents(JOB)[0]["spec"]["entrypoint"])
    assert words[:2] == ["python", "jobs/train.py"]
    assert (ROOT / words[1]).is_file()
    config = load_config(words[2], ROOT / words[words.index("--config") + 1], [w for w in words if "=" in w])
    group = next(g for g in cluster_of(documents(JOB)[0])["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert config.workers.gpu
    assert config.workers.count <= group["maxReplicas"]
    assert str(config.workers.storage).startswith("s3://")
    assert "--resume" in words


COMPOSE = yaml.safe_load((ROOT / "infra/compose.yaml").read_text(encoding="utf-8"))


def test_compose_is_whole() -> None:
    wanted = {"postgres", "s3", "mlflow", "ray-head", "ray-worker", "serve", "edge", "prometheus", "grafana"}
    assert wanted <= COMPOSE["services"].keys()


def test_compose_builds_and_mounts_what_exists_and_publishes_only_the_edge() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":\S*\d", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            made_by_the_operator = source == "./edge/tls"
            there = source in COMPOSE["volumes"] or (ROOT / "infra" / source).exists()
            assert there or made_by_the_operator, source
        for other in service.get("depends_on", []):
            assert other in COMPOSE["services"]
        assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published.pop("edge")
    # people look at dashboards from this machine only
    assert all(str(port).startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_compose_takes_every_secret_from_the_environment_file() -> None:
    text = (ROOT / "infra/compose.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\$\{(\w+):\?\}", text))
    example = (ROOT / "infra/env.example").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert not re.search(r"(?i)(password|secret|token)\S*: [\"']?[a-z0-9]{6,}[\"']?$", text, re.MULTILINE)
