"""Alerts and dashboards name metrics that the code exports; alerts fire when they should; each has its runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from ray.util.metrics import Counter, Metric

from hepalign.distributed import metrics as training_metrics
from hepalign_serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra/monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARDS = sorted((MONITORING / "grafana/dashboards").glob("*.json"))


def of_the_service() -> set[str]:
    """The series of the service's own registry."""
    found: set[str] = set()
    for value in vars(Metrics()).values():
        if isinstance(value, MetricWrapperBase):
            [described] = value.describe()
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
            found |= {f"{described.name}{suffix}" for suffix in suffixes[described.type]}
    return found


def of_trainings() -> set[str]:
    """The series that our workers export through Ray, by the metric objects themselves."""
    found = set()
    for value in vars(training_metrics).values():
        if isinstance(value, Metric):
            suffix = "_total" if isinstance(value, Counter) else ""
            found.add(f"ray_{value.info['name']}{suffix}")
    return found


def of_ray() -> set[str]:
    """The series of Ray's node agents and of Ray Train, by Ray's own definitions."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
    from ray.train.v2._internal.metrics.controller import ControllerMetrics
    from ray.train.v2._internal.metrics.worker import WorkerMetrics

    of_train = {
        value
        for owner in (ControllerMetrics, WorkerMetrics)
        for value in vars(owner).values()
        if isinstance(value, str) and value.startswith("train_")
    }
    return {f"ray_{name}" for name in METRICS_GAUGES.keys() | of_train}


EXPORTED = of_the_service() | of_trainings() | of_ray() | {"up"}


def named(expression: str) -> set[str]:
    """The metrics of a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:ray_|hepalign_)\w+|\bup\b", bare))


def queries(path: Path) -> list[str]:
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_lists_of_exported_metrics_are_not_empty() -> None:
    assert {"hepalign_requests_total", "hepalign_request_seconds_bucket", "hepalign_queue_length"} <= EXPORTED
    assert {"ray_hepalign_training_epoch", "ray_hepalign_training_checkpoints_total"} <= EXPORTED
    assert {"ray_node_cpu_utilization", "ray_train_checkpoint_transfer_total_time_s"} <= EXPORTED


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_names_metrics_that_are_exported(rule: dict[str, Any]) -> None:
    assert named(rule["expr"])
    assert named(rule["expr"]) - EXPORTED == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_has_its_runbook(rule: dict[str, Any]) -> None:
    page = ROOT / rule["annotations"]["runbook"]
    assert page.stem == rule["alert"]
    assert all(word in page.read_text(encoding="utf-8") for word in ("**Means.**", "**Look.**", "**Mend.**"))


def test_there_is_no_runbook_without_its_alert() -> None:
    assert {page.stem for page in (ROOT / "docs/runbooks").glob("Hepalign*.md")} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_every_query_of_a_dashboard_names_metrics_that_are_exported(path: Path) -> None:
    assert queries(path)
    for query in queries(path):
        assert named(query), query
        assert named(query) - EXPORTED == set(), query


def test_there_are_dashboards_for_training_and_serving_that_grafana_finds() -> None:
    assert [path.stem for path in DASHBOARDS] == ["serving", "training"]
    sources = yaml.safe_load((MONITORING / "grafana/datasources.yml").read_text(encoding="utf-8"))["datasources"]
    for path in DASHBOARDS:
        board = json.loads(path.read_text(encoding="utf-8"))
        used = {panel["datasource"]["uid"] for panel in board["panels"]}
        assert used == {source["uid"] for source in sources}
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


def test_promtool_accepts_the_rules_and_the_configuration(promtool: str) -> None:
    for words in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_firing_and_silent() -> None:
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    outcomes: dict[str, set[bool]] = {}
    for case in cases:
        for check in case["alert_rule_test"]:
            outcomes.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert outcomes == {rule["alert"]: {True, False} for rule in RULES}


def test_promtool_finds_a_rule_that_is_off(promtool: str, tmp_path: Path) -> None:
    rules = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    (tmp_path / "alerts.yml").write_text(rules.replace("> 10\n", "> 100\n", 1), encoding="utf-8")
    (tmp_path / "alerts_test.yml").write_text((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"), "utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "HepalignQueueLong" in done.stdout + done.stderr
