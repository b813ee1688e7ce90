"""Run the benchmarks and write their figures, beside their targets and the machine, into docs/performance.md.

Usage: python benchmarks/run.py [NAME ...]     (all of them, or some; the rest of the table stays as it was measured)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGE, FIGURES, PLOT = DOCS / "performance.md", DOCS / "performance.json", DOCS / "images/performance.svg"
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench writes -->"
# In this order in the table; load.py is a soak with a report of its own.
SCRIPTS = (
    "guide", "guide_http", "voxelmorph_network", "partial_conv", "losses", "compose", "ray_step", "loader_wait",
    "phantom", "scaling", "starts", "precision", "floor",
)  # fmt: skip


def main() -> None:
    """One after the other, so that none disturbs another; a failing one is named and fails the run."""
    names = sys.argv[1:] or list(SCRIPTS)
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    measured: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    failed = []
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        lines = run(name)
        if lines is None:
            failed.append(name)
            continue
        measured[name] = {"machine": machine(), "day": time.strftime("%Y-%m-%d"), "lines": lines}
        # after each, so that an interrupted run keeps what it measured
        FIGURES.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(measured)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str) -> list[dict[str, Any]] | None:
    """A benchmark's lines, or None when it failed."""
    done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def machine() -> str:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {platform.system()}"


def write_page(measured: dict[str, Any]) -> None:
    """Replace what stands between the marks; what people wrote around it stays."""
    lines = [line for name in SCRIPTS if name in measured for line in measured[name]["lines"]]
    rows = ["| figure | measured | quartiles | target | met |", "|---|---|---|---|---|"]
    for line in lines:
        low, high = line["quartiles"]
        met = {True: "yes", False: "**no**", None: ""}[line.get("met")]
        rows.append(
            f"| {line['figure']} | {line['value']:.3g} {line['unit']} | {low:.3g} – {high:.3g} "
            f"| {line.get('target', '')} | {met} |"
        )
    machines = sorted({f"{found['machine']} ({found['day']})" for found in measured.values()})
    body = "\n".join([BEGIN, "", *(f"Measured on {text}." for text in machines), "", *rows, "",
                      "![Each figure over its target](images/performance.svg)", "", END])  # fmt: skip
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Performance\n\n{BEGIN}{END}\n"
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(before + body + rest.split(END, 1)[1], encoding="utf-8")
    plot(lines)


def plot(lines: list[dict[str, Any]]) -> None:
    """How many times better (right) or worse (left) than its target each figure is."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    judged = [line for line in lines if "times_target" in line and line["times_target"] > 0][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(judged) + 1), layout="constrained")
    colours = ["tab:green" if line["met"] else "tab:red" for line in judged]
    axes.barh([line["figure"] for line in judged], [line["times_target"] - 1 for line in judged], left=1, color=colours)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times better than the target")
    axes.tick_params(labelsize=7)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
