"""The demo's one page: figures, curves and fused slices, self-contained."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = {
    ("liver", "tre_mm"): "liver TRE, mm",
    ("liver", "dice"): "liver Dice",
    ("tumour", "tre_mm"): "tumour TRE, mm",
    ("tumour", "dice"): "tumour Dice",
    ("field", "folding_fraction"): "folds",
    ("field", "seconds"): "seconds",
}
IMAGES = {
    "synthesis": ("mae_hu", "synthesis: MAE of the synthetic CT in the body, HU"),
    "inpainting": ("hole_l1_hu", "inpainting: L1 in the hole, HU"),
}
# pair, trained method, the same untrained, what it is
CHAINS = (
    ("pCT-iCT", "network", "untrained-network", "the registration network alone (pCT to iCT)"),
    ("pMR-pCT", "proposed-refine", "untrained", "synthesis + registration (pMR to pCT, refine)"),
    ("pMR-iCT", "proposed-refine", "untrained", "all three (pMR to iCT, refine)"),
)
# the curves a reader wants first; everything else is in MLflow
CURVES_PER_STAGE = 3


def write_report(
    out: Path,
    trained: Mapping[str, Mapping[str, Any]],
    evaluated: Mapping[str, Any],
    served: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> None:
    """Write `report.html` into the demo's folder; `overview.png` is there already."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        overview=_embedded((out / "overview.png").read_bytes()),
        curves=_embedded(_curves({stage: Path(found["folder"]) for stage, found in trained.items()})),
        trained=trained,
        tables={name: _by_method(rows) for name, rows in evaluated["tables"].items()},
        gains=_gains({name: out / "evaluation" / name for name in evaluated["tables"]}),
        failed=evaluated["failed"],
        reports={name: f"evaluation/{name}/report.html" for name in evaluated["tables"]},
        served=served,
        seconds=seconds,
        total_s=sum(seconds.values()),
    )
    partial = out / "report.html.part"
    partial.write_text(page, encoding="utf-8")
    partial.replace(out / "report.html")


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _curves(folders: Mapping[str, Path]) -> bytes:
    """One panel a stage: the training loss beside the validation metrics, each against the epoch."""
    figure, axes = plt.subplots(1, len(folders), figsize=(5 * len(folders), 3.2), layout="constrained")
    for axis, (stage, folder) in zip(axes, folders.items(), strict=True):
        with (folder / "curves.csv").open() as file:
            rows = list(csv.DictReader(file))
        names = ["train/loss", *[n for n in rows[0] if n.startswith("val/")]][: CURVES_PER_STAGE + 1]
        for name in names:
            points = [(float(r["epoch"]), float(r[name])) for r in rows if r.get(name)]
            first = abs(points[0][1]) or 1.0
            axis.plot(
                [e for e, _ in points], [v / first for _, v in points], marker=".", label=f"{name} (× {first:.3g})"
            )
        axis.set(title=stage, xlabel="epoch", ylabel="relative to the first epoch", ylim=(0, None))
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _by_method(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Table 2 as a reader meets it: a block a pair, a line a method, the columns of `COLUMNS`."""
    pairs: dict[str, dict[str, dict[tuple[str, str], str]]] = {}
    for row in rows:
        column = row["structure"], row["metric"]
        if column in COLUMNS and row["mean"] is not None:
            spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
            methods = pairs.setdefault(row["pair"], {})
            methods.setdefault(row["method"], {})[column] = f"{row['mean']:.2f}{spread}"
    return {"columns": COLUMNS, "pairs": pairs}


def _gains(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What each network's training brought, on the test split: trained, the same untrained, and nothing done."""
    lines = []
    for cohort, folder in folders.items():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        images = {(kind, r["metric"], r["method"]): r["mean"] for kind in IMAGES for r in results["images"][kind]}
        for kind, (metric, about) in IMAGES.items():
            trained, before, nothing = (
                images.get((kind, metric, method)) for method in ("proposed-refine", "untrained", "identity")
            )
            lines.append({"cohort": cohort, "about": about, "trained": trained, "untrained": before,
                          "identity": nothing})  # fmt: skip
        table = {(r["pair"], r["structure"], r["metric"], r["method"]): r["mean"] for r in results["table"]}
        for pair, ours, theirs, name in CHAINS:
            trained, before, nothing = (
                table.get((pair, "liver", "tre_mm", method)) for method in (ours, theirs, "identity")
            )
            lines.append({"cohort": cohort, "about": f"{name}, liver TRE, mm", "trained": trained, "untrained": before,
                          "identity": nothing})  # fmt: skip
    return [line for line in lines if line["trained"] is not None]
