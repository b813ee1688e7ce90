"""Alerts name metrics that the service exports, and each has its runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "infra/monitoring/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def exported() -> set[str]:
    """Metric names by the service's own definitions, with the suffixes that Prometheus clients add."""
    source = (ROOT / "serve/hepalign_serve/metrics.py").read_text(encoding="utf-8")
    names = set()
    for kind, name in re.findall(r'(Counter|Histogram|Gauge)\("(\w+)"', source):
        suffixes = {"Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"], "Gauge": [""]}[kind]
        names |= {f"hepalign_{name}{suffix}" for suffix in suffixes}
    return names


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_names_metrics_that_are_exported(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\bhepalign_\w+", rule["expr"]))
    assert named - exported() == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_an_alert_has_its_runbook(rule: dict[str, Any]) -> None:
    page = ROOT / rule["annotations"]["runbook"]
    assert page.stem == rule["alert"]
    assert all(word in page.read_text(encoding="utf-8") for word in ("**Means.**", "**Look.**", "**Mend.**"))
