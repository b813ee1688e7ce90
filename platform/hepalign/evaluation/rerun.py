"""How far a run without cache stands from the one before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hepalign.evaluation.tables import IMAGE_METRICS, REGION_METRICS, REGIONS, STRUCTURE_METRICS
from hepalign.evaluation.unit import Record

# With one thread every method repeats itself exactly; with more, sums are taken in another order, and an optimiser
# may stop a step earlier. Beyond this a method is not repeatable.
TOLERANCES = {"mm": 0.1, "share": 0.01, "HU": 1.0, "dB": 0.1}
RATES = ("folding_fraction", "sd_log_jacobian", "inverse_consistency_mm")


def compare_runs(before: Iterable[Record], after: Iterable[Record]) -> dict[str, Any]:
    """The largest difference of any case by method and kind of unit, and whether all are within `TOLERANCES`.

    Seconds and memory are no results and are not compared.

    Returns:
        `units` (how many case × method both have), `tolerances`, `differences` (rows method, unit, largest),
        `one_sided` (how many values only one of the runs has) and `within`.
    """
    first = {(record["case"], record["method"]): _values(record) for record in before}
    second = {(record["case"], record["method"]): _values(record) for record in after}
    shared = [unit for unit in second if unit in first]
    largest: dict[tuple[str, str], float] = {}
    one_sided = 0
    for unit in shared:
        one_sided += len(first[unit].keys() ^ second[unit].keys())
        for name in first[unit].keys() & second[unit].keys():
            key = unit[1], _unit(name)
            largest[key] = max(largest.get(key, 0.0), abs(first[unit][name] - second[unit][name]))
    rows = [{"method": method, "unit": unit, "largest": value} for (method, unit), value in sorted(largest.items())]
    within = one_sided == 0 and all(value <= TOLERANCES[unit] for (_, unit), value in largest.items())
    return {
        "units": len(shared), "tolerances": TOLERANCES, "differences": rows, "one_sided": one_sided, "within": within,
    }  # fmt: skip


def _values(record: Record) -> dict[str, float]:
    metrics = [f"{structure}_{name}" for structure in ("liver", "tumour") for name in STRUCTURE_METRICS]
    metrics += [*(f"{region}_{name}" for region in REGIONS for name in REGION_METRICS), *RATES]
    found = {
        f"{row['pair']}/{name}": row[name] for row in record["rows"] for name in metrics if row.get(name) is not None
    }
    images: Mapping[str, Mapping[str, float]] = {kind: record["images"].get(kind, {}) for kind in IMAGE_METRICS}
    return found | {f"{kind}/{name}": value for kind, scores in images.items() for name, value in scores.items()}


def _unit(name: str) -> str:
    ending = name.rpartition("_")[2]
    return {"mm": "mm", "hu": "HU", "db": "dB"}.get(ending, "share")
