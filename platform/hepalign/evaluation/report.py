"""The report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from hepalign.evaluation import figures
from hepalign.evaluation.pairs import PAIRS
from hepalign.evaluation.paper import COLUMNS, TABLE_2
from hepalign.evaluation.tables import IMAGE_METRICS, PEER, REFERENCE
from hepalign.evaluation.unit import Record

SIGNIFICANT = 0.05
METRIC_NAMES = {
    "dice": "Dice, %", "tre_mm": "TRE, mm", "dense_tre_mm": "TRE (dense), mm", "hd95_mm": "HD95, mm",
    "assd_mm": "surface, mm", "skin_mm": "skin, mm", "seconds": "seconds", "peak_memory_mb": "peak memory, MB",
    "folding_fraction": "folding, %", "sd_log_jacobian": "SD log J",
    "inverse_consistency_mm": "inverse consistency, mm", "mae_hu": "MAE, HU", "psnr_db": "PSNR, dB",
    "ssim": "SSIM", "edge_drift_mm": "edge drift, mm", "liver_boundary_mm": "liver's boundary, mm",
    "hole_l1_hu": "L1 in the hole, HU",
    "hole_psnr_db": "PSNR in the hole, dB", "hole_ssim": "SSIM in the hole", "rim_l1_hu": "L1 on the rim, HU",
    "rim_psnr_db": "PSNR on the rim, dB", "rim_ssim": "SSIM on the rim",
}  # fmt: skip
PERCENT = ("dice", "folding_fraction")
LARGER_IS_BETTER = ("dice", "psnr_db", "ssim", "hole_psnr_db", "hole_ssim", "rim_psnr_db", "rim_ssim")
# Rows without a winner: a field may be smooth because it did nothing.
UNRANKED = ("peak_memory_mb", "folding_fraction", "sd_log_jacobian", "inverse_consistency_mm")
EMPTY_CELL = {
    "text": "", "sd": "", "best": False, "bar": False, "star": "", "title": "", "paper": "", "failed": 0,
}  # fmt: skip
HEADLINES = (("liver", "dense_tre_mm"), ("liver", "tre_mm"), ("liver", "dice"), ("body", "dense_tre_mm"))


def write(results: Mapping[str, Any], records: Sequence[Record], path: Path) -> None:
    """Write the page for an evaluation's results and the records that hold its pictures."""
    environment = Environment(
        loader=PackageLoader("hepalign.evaluation"), autoescape=select_autoescape(default=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(**_context(results, records))
    path.write_text(page, encoding="utf-8")


def _context(results: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    families = {method["name"]: method["family"] for method in results["methods"]}
    rows = [row for row in results["cases"] if row["status"] == "ok"]
    present = {row["method"] for row in results["table"]}
    columns = [name for name in families if name in present]
    compared = [name for name in columns if families[name] != "ablation"]
    ablated = [name for name in columns if families[name] in ("proposed", "ablation")]
    shown = {name: families[name] for name in compared}
    error = figures.error_key(rows) or figures.ERRORS[0]
    name = figures.error_name(error)
    charts = [
        (f"{name.capitalize()} by method", figures.box_plots(rows, shown, error, f"{name}, mm")),
        ("Liver Dice by method", figures.box_plots(rows, shown, "liver_dice", "Dice")),
        ("Speed and accuracy", figures.pareto_plot(rows, shown)),
        ("Capture range", figures.capture_plot(rows, shown)),
    ]
    with_ablations = any(families[name] == "ablation" for name in ablated)
    if with_ablations:
        both = {name: families[name] for name in ablated}
        charts.append((f"Ablations: {name}", figures.box_plots(rows, both, error, f"{name}, mm")))
    # the release's own columns stand first: with every peer the table is wider than a screen
    columned = sorted(compared, key=lambda name: ("start", "proposed", "peer").index(families[name]))
    grid = _grid(results["table"], columned)
    return {
        "results": results,
        "facts": results["provenance"],
        "families": families,
        "headlines": _headlines(results["table"]),
        "tables": [
            ("The paper's metrics", [line for line in grid if not line["minor"]], columned),
            ("Surfaces, the hole, and the field itself", [line for line in grid if line["minor"]], columned),
        ],
        "ablations": [line for line in _grid(results["table"], ablated) if not line["minor"]] if with_ablations else [],
        "ablation_columns": ablated,
        "robust": _robust(results["table"], columned),
        "steps": _step_grid(results["steps"]),
        "images": _image_grid(results["images"]),
        "charts": [(title, Markup(svg)) for title, svg in charts if svg],  # noqa: S704 - matplotlib's own SVG
        "failures": [row for row in results["cases"] if row["status"] == "failed"],
        "remarks": [row for row in rows if row["message"]] + [r for r in results["images"]["cases"] if r["message"]],
        "gallery": _gallery(results, records),
        "paper_columns": list(COLUMNS),
        "paper": _paper_rows(),
        "case_count": len({row["case"] for row in results["cases"]}),
    }


def _grid(table: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Table 2's shape: a line a pair × structure × metric, a cell a method; the best of those with the most cases."""
    lines = []
    for key in dict.fromkeys((row["pair"], row["structure"], row["metric"]) for row in table):
        rows = [row for row in table if (row["pair"], row["structure"], row["metric"]) == key]
        cells = {row["method"]: row for row in rows if row["method"] in methods}
        means = {name: cell["mean"] for name, cell in cells.items() if cell["mean"] is not None}
        most = max((cells[name]["n"] for name in means), default=0)
        ranked = {name: mean for name, mean in means.items() if name != "identity" and cells[name]["n"] == most}
        choose = max if key[2] in LARGER_IS_BETTER else min
        best = choose(ranked, key=ranked.__getitem__) if ranked and key[2] not in UNRANKED else None
        if any(name in means for name in methods):
            lines.append({
                "pair": key[0], "structure": key[1], "metric": METRIC_NAMES[key[2]],
                "minor": (key[1] in ("field", "hole") and key[2] != "seconds") or key[2] in ("hd95_mm", "assd_mm"),
                "cells": [_cell(cells.get(name), key[2], name == best) for name in methods],
            })  # fmt: skip
    return lines


def _robust(table: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The 30th percentile from the bad end of Dice and error: a line a pair × metric, a text a method."""
    lines = []
    for pair in PAIRS:
        for structure, metric in HEADLINES:
            rows = {
                row["method"]: row["p30"]
                for row in table
                if (row["pair"], row["structure"], row["metric"]) == (pair, structure, metric)
                and row["p30"] is not None
            }
            if rows:
                texts = [number(rows[name], metric) if name in rows else "" for name in methods]
                lines.append({"pair": pair, "metric": METRIC_NAMES[metric], "texts": texts})
    return lines


def _step_grid(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds by step: a line a pair × method."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in steps:
        lines.setdefault((row["pair"], row["method"]), []).append(f"{row['step']} {row['seconds']:.2f}")
    return [{"pair": pair, "method": method, "steps": " · ".join(texts)} for (pair, method), texts in lines.items()]


def _cell(row: Mapping[str, Any] | None, metric: str, best: bool) -> dict[str, Any]:
    if row is None:
        return EMPTY_CELL
    if row["mean"] is None:
        return {**EMPTY_CELL, "text": "failed" if row["failed"] else "", "failed": row["failed"]}
    p = row["p"]
    facts = [f"n = {row['n']}"]
    if row["failed"]:
        facts.append(f"{row['failed']} failed and are not in this mean")
    if p is not None:
        facts.append(f"against {REFERENCE}: p = {p:.3g} (Wilcoxon, Holm), effect {row['effect']:+.2f}")
    facts.append(f"30th percentile {number(row['p30'], metric)}")
    paper = row["paper_mean"]
    return {
        "text": number(row["mean"], metric),
        "sd": "" if row["sd"] is None else number(row["sd"], metric),
        "best": best,
        "bar": row["bar"] and metric not in UNRANKED,
        "star": "*" if p is not None and p < SIGNIFICANT else "",
        "title": "; ".join(facts),
        "paper": "" if paper is None else f"{number(paper, metric)} ± {number(row['paper_sd'], metric)}",
        "failed": row["failed"],
    }


def number(value: float, metric: str) -> str:
    """A value as its reader expects it: percent for Dice and folding, sensible digits for the rest."""
    if metric == "folding_fraction":
        return f"{100 * value:.3f}"
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    if metric in ("peak_memory_mb",) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3f}" if "ssim" in metric or "jacobian" in metric else f"{value:.2f}"


def _headlines(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per pair, ours beside the portfolio's bar: the first of dense TRE, TRE and Dice that is known."""
    tiles = []
    for pair in PAIRS:
        for structure, metric in HEADLINES:
            rows = [r for r in table if (r["pair"], r["structure"], r["metric"]) == (pair, structure, metric)]
            found = {row["method"]: row for row in rows if row["mean"] is not None}
            if REFERENCE not in found:
                continue
            ours = found[REFERENCE]["mean"]
            bar = next((row for row in rows if row["bar"]), None)
            choose = max if metric in LARGER_IS_BETTER else min
            tiles.append({
                "pair": pair,
                "what": f"{structure} {METRIC_NAMES[metric].split(',')[0]}",
                "value": number(ours, metric),
                "unit": "%" if metric in PERCENT else "mm",
                "before": number(found["identity"]["mean"], metric) if "identity" in found else "",
                "peer": f"{bar['method']} {number(bar['mean'], metric)}" if bar else "",
                "won": bar is None or choose(ours, bar["mean"]) == ours,
                "p": f"p = {bar['p']:.2g}" if bar and bar["p"] is not None else "",
            })  # fmt: skip
            break
    return tiles


def _image_grid(images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Synthesis and inpainting scores: a line a method, a column a metric."""
    blocks = []
    for kind, metrics in IMAGE_METRICS.items():
        rows = images[kind]
        if not rows:
            continue
        known = [metric for metric in metrics if any(row["metric"] == metric for row in rows)]
        lines = {}
        for method in dict.fromkeys(row["method"] for row in rows):
            found = {row["metric"]: row for row in rows if row["method"] == method}
            lines[method] = [_image_cell(found.get(metric), metric) for metric in known]
        blocks.append({"title": kind, "metrics": [METRIC_NAMES[m] for m in known], "lines": lines})
    return blocks


def _image_cell(row: Mapping[str, Any] | None, metric: str) -> dict[str, str]:
    if row is None:
        return {"text": "", "title": ""}
    spread = "" if row["sd"] is None else f" ± {number(row['sd'], metric)}"
    star, title = "", f"n = {row['n']}"
    if row["p"] is not None:
        star = "*" if row["p"] < SIGNIFICANT else ""
        title += f"; against {REFERENCE}: p = {row['p']:.3g} (Wilcoxon, Holm), effect {row['effect']:+.2f}"
    return {"text": f"{number(row['mean'], metric)}{spread}{star}", "title": title}


def _gallery(results: Mapping[str, Any], records: Sequence[Record]) -> list[dict[str, Any]]:
    """The cases with their pictures, worst first by our error."""
    shown = [REFERENCE, _best_peer(results["table"])]
    cases: dict[str, dict[str, Any]] = {}
    for record in records:
        if not record["pictures"]:
            continue
        entry = cases.setdefault(record["case"], {"case": record["case"], "worst": 0.0, "pictures": [], "hole": ""})
        rows = {row["pair"]: row for row in record["rows"] if row["status"] == "ok"}
        if record["method"] == REFERENCE:
            key = figures.error_key(list(rows.values()))
            entry["worst"] = max((row.get(key) or 0.0 for row in rows.values()), default=0.0) if key else 0.0
            entry["hole"] = Markup(record["pictures"].get("hole", ""))  # noqa: S704 - our own data URI
        if record["method"] in shown:
            entry["pictures"] += [
                {"pair": pair, "method": record["method"], "uri": Markup(uri), "facts": _facts(rows[pair])}  # noqa: S704
                for pair, uri in record["pictures"].items()
                if pair in rows
            ]
    for entry in cases.values():
        entry["pictures"].sort(key=lambda p: (list(PAIRS).index(p["pair"]), shown.index(p["method"])))
    return sorted(cases.values(), key=lambda entry: -entry["worst"])


def _best_peer(table: Sequence[Mapping[str, Any]]) -> str:
    """The peer that did every pair with the smallest mean error over them."""
    totals: dict[str, list[float]] = {}
    for row in table:
        if row["family"] == PEER and f"{row['structure']}_{row['metric']}" in figures.ERRORS and row["mean"]:
            totals.setdefault(row["method"], []).append(row["mean"])
    most = max(map(len, totals.values()), default=0)
    means = {name: sum(found) / len(found) for name, found in totals.items() if len(found) == most}
    return min(means, key=means.__getitem__) if means else ""


def _facts(row: Mapping[str, Any]) -> str:
    names = {
        "liver_dice": "liver Dice", "liver_dense_tre_mm": "liver error", "body_dense_tre_mm": "body error",
        "body_skin_mm": "skin", "tumour_dense_tre_mm": "tumour error",
    }  # fmt: skip
    parts = []
    for key, name in names.items():
        if row.get(key) is not None:
            parts.append(f"{name} {100 * row[key]:.1f} %" if key.endswith("dice") else f"{name} {row[key]:.2f} mm")
    parts.append(f"{row['seconds']:.1f} s")
    return " · ".join(parts)


def _paper_rows() -> list[dict[str, Any]]:
    rows = []
    for (pair, structure, metric), columns in TABLE_2.items():
        cells = []
        for column in COLUMNS:
            found = columns.get(column)
            text = "–" if found is None else f"{number(found.mean, metric)} ± {number(found.sd, metric)}"
            cells.append({"text": text, "note": "" if found is None else found.note})
        rows.append({"what": f"{pair} {structure} {METRIC_NAMES[metric]}", "cells": cells})
    return rows
