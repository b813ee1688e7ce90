"""From the records of all units to the rows of table2.csv, cases.csv and results.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hepalign.evaluation.pairs import PAIRS, STRUCTURES
from hepalign.evaluation.paper import printed
from hepalign.evaluation.statistics import compare, robust_percentile
from hepalign.evaluation.unit import Record

REFERENCE = "proposed-refine"
# What the bar is chosen among: the portfolio of peers, never ourselves.
PEER = "peer"
# metric -> whether larger is better
STRUCTURE_METRICS = {"dice": True, "tre_mm": False, "dense_tre_mm": False, "hd95_mm": False, "assd_mm": False}
FIELD_METRICS = {
    "seconds": False, "peak_memory_mb": False, "folding_fraction": False, "sd_log_jacobian": False,
    "inverse_consistency_mm": False,
}  # fmt: skip
# Beside the structures: the liver's part in the hole, and the body where no liver is known.
REGIONS = ("hole", "body")
REGION_METRICS = {"dense_tre_mm": False, "skin_mm": False}
IMAGE_METRICS = {
    "synthesis": {"mae_hu": False, "psnr_db": True, "ssim": True, "edge_drift_mm": False, "liver_boundary_mm": False},
    "inpainting": {
        "hole_l1_hu": False, "hole_psnr_db": True, "hole_ssim": True, "rim_l1_hu": False, "rim_psnr_db": True,
        "rim_ssim": True,
    },
}  # fmt: skip
TABLE_COLUMNS = (
    "pair", "structure", "metric", "method", "family", "bar", "mean", "sd", "n", "failed", "p", "effect",
    "median_difference", "p30", "paper_mean", "paper_sd", "paper_note",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "patient", "split", "pair", "method", "family", "status", "message", "seconds", "peak_memory_mb",
    *(f"{s}_{m}" for s in STRUCTURES for m in STRUCTURE_METRICS),
    *(f"{region}_{metric}" for region in REGIONS for metric in REGION_METRICS),
    "folding_fraction", "sd_log_jacobian", "jacobian_min", "jacobian_max", "inverse_consistency_mm", "quality", "steps",
)  # fmt: skip

IMAGE_COLUMNS = ("case", "method", "message", *(name for metrics in IMAGE_METRICS.values() for name in metrics))
# Among a release's timings: sums of others.
TOTALS = ("compute_s",)


def collect(records: Sequence[Record], methods: Mapping[str, str]) -> dict[str, Any]:
    """The rows: `cases` (a case × pair × method), `table` (a pair × structure × metric × method), `steps`, `images`.

    Args:
        methods: name to family, in the order of the columns.
    """
    cases = [
        {**{key: record[key] for key in ("case", "patient", "split", "method", "family")}, **row}
        for record in records
        for row in record["rows"]
    ]
    table = []
    for pair in PAIRS:
        here = [row for row in cases if row["pair"] == pair]
        tries = {name: sum(row["method"] == name for row in here) for name in methods}
        failed = {name: sum(r["method"] == name and r["status"] == "failed" for r in here) for name in methods}
        groups = [(structure, f"{structure}_", STRUCTURE_METRICS) for structure in STRUCTURES]
        groups += [*((region, f"{region}_", REGION_METRICS) for region in REGIONS), ("field", "", FIELD_METRICS)]
        for structure, prefix, metrics in groups:
            for metric, larger in metrics.items():
                values = {
                    name: found for name, found in _by_method(here, methods, prefix + metric).items() if tries[name]
                }
                place = {"pair": pair, "structure": structure, "metric": metric}
                for row in _rows(values, larger, methods):
                    paper = printed(pair, structure, metric, row["method"])
                    table.append({
                        **place, **row, "failed": failed[row["method"]],
                        "paper_mean": paper.mean if paper else None,
                        "paper_sd": paper.sd if paper else None,
                        "paper_note": paper.note if paper else "",
                    })  # fmt: skip
    return {"cases": cases, "table": table, "steps": _steps(cases), "images": _images(records, methods)}


def _by_method(rows: Iterable[Mapping[str, Any]], methods: Iterable[str], key: str) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {name: {} for name in methods}
    for row in rows:
        value = row.get(key)
        if value is not None and np.isfinite(value):
            values[row["method"]][row["case"]] = float(value)
    return values


def _rows(values: Mapping[str, Mapping[str, float]], larger: bool, families: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a method: moments, the test against the reference, and whether it is the portfolio's bar."""
    if not any(values.values()):
        return []
    others = {name: found for name, found in values.items() if name != REFERENCE and found}
    compared = compare(values.get(REFERENCE, {}), others, larger_is_better=larger)
    bar = _bar({name: found for name, found in others.items() if families[name] == PEER}, larger)
    rows = []
    for name, found in values.items():
        comparison = compared.get(name)
        rows.append({
            "method": name, "family": families[name], "bar": name == bar, **_moments(list(found.values()), larger),
            "p": comparison.p if comparison else None,
            "effect": comparison.effect if comparison else None,
            "median_difference": comparison.difference if comparison else None,
        })  # fmt: skip
    return rows


def _bar(peers: Mapping[str, Mapping[str, float]], larger: bool) -> str | None:
    """The portfolio's best peer by its mean, among those that did the most cases."""
    most = max((len(found) for found in peers.values()), default=0)
    means = {name: float(np.mean(list(found.values()))) for name, found in peers.items() if len(found) == most}
    if not means:
        return None
    return (max if larger else min)(means, key=means.__getitem__)


def _moments(values: Sequence[float], larger: bool) -> dict[str, Any]:
    """Mean, sample SD, n and the 30th percentile from the bad end; None where there is no value."""
    if not values:
        return {"mean": None, "sd": None, "n": 0, "p30": None}
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "p30": robust_percentile(values, larger_is_better=larger),
    }


def _steps(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean seconds of each step: a row a pair × method × step."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for row in cases:
        for step, value in row.get("steps", {}).items():
            if step not in TOTALS:
                seconds.setdefault((row["pair"], row["method"], step), []).append(value)
    return [
        {"pair": pair, "method": method, "step": step, "seconds": float(np.mean(values)), "n": len(values)}
        for (pair, method, step), values in seconds.items()
    ]


def _images(records: Sequence[Record], methods: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Scores of the synthetic and the inpainted CTs: a row a metric × method, and the cases behind them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, metrics in IMAGE_METRICS.items():
        scored = [{"case": r["case"], "method": r["method"], **r["images"].get(kind, {})} for r in records]
        found[kind] = [
            {"metric": metric, **row}
            for metric, larger in metrics.items()
            for row in _rows({n: v for n, v in _by_method(scored, methods, metric).items() if v}, larger, methods)
        ]
    found["cases"] = [
        {"case": r["case"], "method": r["method"], **{kind: r["images"].get(kind) for kind in IMAGE_METRICS},
         "message": r["images"].get("failed", "")}
        for r in records
        if r["images"]
    ]  # fmt: skip
    return found


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write table2.csv, cases.csv, images.csv and results.json."""
    _write_csv(out / "table2.csv", TABLE_COLUMNS, results["table"])
    cases = [{**row, "quality": row.get("quality", {}).get("status", "")} for row in results["cases"]]
    _write_csv(out / "cases.csv", CASE_COLUMNS, cases)
    images = [
        {**row, **{name: value for kind in IMAGE_METRICS for name, value in (row[kind] or {}).items()}}
        for row in results["images"]["cases"]
    ]
    _write_csv(out / "images.csv", IMAGE_COLUMNS, images)
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return " ".join(f"{name}={seconds:.3g}" for name, seconds in value.items())
    return f"{value:.6g}" if isinstance(value, float) else value
