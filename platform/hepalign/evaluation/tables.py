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
# metric -> whether larger is better
STRUCTURE_METRICS = {"dice": True, "tre_mm": False, "dense_tre_mm": False, "hd95_mm": False, "assd_mm": False}
FIELD_METRICS = {"seconds": False, "peak_memory_mb": False, "folding_fraction": False, "sd_log_jacobian": False}
HOLE_METRICS = {"dense_tre_mm": False}
IMAGE_METRICS = {
    "synthesis": {"mae_hu": False, "psnr_db": True, "ssim": True, "edge_drift_mm": False},
    "inpainting": {
        "hole_l1_hu": False, "hole_psnr_db": True, "hole_ssim": True, "rim_l1_hu": False, "rim_psnr_db": True,
        "rim_ssim": True,
    },
}  # fmt: skip
TABLE_COLUMNS = (
    "pair", "structure", "metric", "method", "mean", "sd", "n", "failed", "p", "effect", "median_difference", "p30",
    "paper_mean", "paper_sd", "paper_note",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "patient", "split", "pair", "method", "status", "message", "seconds", "peak_memory_mb",
    *(f"{s}_{m}" for s in STRUCTURES for m in STRUCTURE_METRICS), "hole_dense_tre_mm",
    "folding_fraction", "sd_log_jacobian", "jacobian_min", "jacobian_max",
)  # fmt: skip


def collect(records: Sequence[Record], methods: Sequence[str]) -> dict[str, Any]:
    """The rows: `cases` (a case × pair × method), `table` (a pair × structure × metric × method) and `images`."""
    cases = [
        {**{key: record[key] for key in ("case", "patient", "split", "method")}, **row}
        for record in records
        for row in record["rows"]
    ]
    table = []
    for pair in PAIRS:
        here = [row for row in cases if row["pair"] == pair]
        groups = [(structure, f"{structure}_", STRUCTURE_METRICS) for structure in STRUCTURES]
        groups += [("hole", "hole_", HOLE_METRICS), ("field", "", FIELD_METRICS)]
        for structure, prefix, metrics in groups:
            for metric, larger in metrics.items():
                values = _by_method(here, methods, prefix + metric)
                tries = {name: sum(row["method"] == name for row in here) for name in methods}
                failed = {name: sum(r["method"] == name and r["status"] == "failed" for r in here) for name in methods}
                table += _rows((pair, structure, metric), values, larger, failed, tries)
    return {"cases": cases, "table": table, "images": _images(records, methods)}


def _by_method(rows: Iterable[Mapping[str, Any]], methods: Sequence[str], key: str) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {name: {} for name in methods}
    for row in rows:
        value = row.get(key)
        if value is not None and np.isfinite(value):
            values[row["method"]][row["case"]] = float(value)
    return values


def _rows(
    place: tuple[str, str, str],
    values: Mapping[str, Mapping[str, float]],
    larger: bool,
    failed: Mapping[str, int],
    tries: Mapping[str, int],
) -> list[dict[str, Any]]:
    if not any(values.values()):
        return []
    others = {name: found for name, found in values.items() if name != REFERENCE and found}
    compared = compare(values.get(REFERENCE, {}), others, larger_is_better=larger)
    rows = []
    for name, found in values.items():
        if not tries[name]:
            continue
        row: dict[str, Any] = {"pair": place[0], "structure": place[1], "metric": place[2], "method": name}
        row |= _moments(list(found.values()), larger) | {"failed": failed[name]}
        comparison = compared.get(name)
        row |= {
            "p": comparison.p if comparison else None,
            "effect": comparison.effect if comparison else None,
            "median_difference": comparison.difference if comparison else None,
        }
        paper = printed(*place, name)
        row |= {
            "paper_mean": paper.mean if paper else None,
            "paper_sd": paper.sd if paper else None,
            "paper_note": paper.note if paper else "",
        }
        rows.append(row)
    return rows


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


def _images(records: Sequence[Record], methods: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Scores of the synthetic and the inpainted CTs: a row a metric × method, and the cases behind them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, metrics in IMAGE_METRICS.items():
        rows = []
        for metric, larger in metrics.items():
            for method in methods:
                scored = [r["images"].get(kind, {}).get(metric) for r in records if r["method"] == method]
                values = [float(v) for v in scored if v is not None and np.isfinite(v)]
                if values:
                    rows.append({"metric": metric, "method": method, **_moments(values, larger)})
        found[kind] = rows
    found["cases"] = [
        {"case": r["case"], "method": r["method"], **{kind: r["images"].get(kind) for kind in IMAGE_METRICS}}
        for r in records
        if r["images"]
    ]
    return found


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write table2.csv, cases.csv and results.json."""
    _write_csv(out / "table2.csv", TABLE_COLUMNS, results["table"])
    _write_csv(out / "cases.csv", CASE_COLUMNS, results["cases"])
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
