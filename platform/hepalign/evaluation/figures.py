"""The report's charts, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hepalign.evaluation.pairs import PAIRS

INK, PALE, GRID = "#1c2735", "#6b7a90", "#e3e8ef"
FAMILY_COLOURS = {"start": "#a9b4c2", "peer": "#5b7db1", "proposed": "#d1495b", "ablation": "#d99a2b"}
STYLE: dict[Any, Any] = {
    "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "axes.axisbelow": True, "svg.fonttype": "none", "svg.hashsalt": "hepalign", "font.family": "sans-serif",
}  # fmt: skip
# The errors of a dense truth are wanted where they are known, landmarks otherwise.
ERRORS = ("liver_dense_tre_mm", "liver_tre_mm", "body_dense_tre_mm")


def error_key(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The best known error among the rows, the liver's if there is one, or None."""
    return next((key for key in ERRORS if any(row.get(key) is not None for row in rows)), None)


def error_name(key: str) -> str:
    """What a figure calls one of `ERRORS`: liver error, body error."""
    return f"{key.partition('_')[0]} error"


def box_plots(rows: Sequence[Mapping[str, Any]], families: Mapping[str, str], key: str, label: str) -> str:
    """A box a method, a panel a pair; each case is a dot."""
    pairs = [pair for pair in PAIRS if any(r["pair"] == pair and r.get(key) is not None for r in rows)]
    if not pairs:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(pairs), 0.42 * len(families) + 1.2), layout="constrained")
        for axes, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
            shown = [(m, _values(rows, pair, m, key)) for m in families]
            shown = [(method, values) for method, values in reversed(shown) if values]
            boxes = axes.boxplot(
                [values for _, values in shown], orientation="horizontal", widths=0.6, patch_artist=True,
                showfliers=False, medianprops={"color": INK, "linewidth": 1.4},
            )  # fmt: skip
            axes.set_yticks(range(1, len(shown) + 1), [method for method, _ in shown])
            for place, (patch, (method, values)) in enumerate(zip(boxes["boxes"], shown, strict=True), start=1):
                colour = FAMILY_COLOURS[families[method]]
                patch.set(facecolor=colour + "55", edgecolor=colour)
                spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
                axes.plot(values, place + spread, "o", color=colour, markersize=3, alpha=0.85)
            axes.set_title(pair, loc="left", fontweight="bold")
            axes.set_xlabel(label)
            if key in ERRORS:
                _log_mm(axes.xaxis, axes.set_xscale)
            axes.grid(axis="y", visible=False)
        return _svg(figure)


def pareto_plot(rows: Sequence[Mapping[str, Any]], families: Mapping[str, str]) -> str:
    """Mean seconds against mean error; the line joins the methods that nobody beats in both."""
    key = error_key(rows)
    pairs = [pair for pair in PAIRS if any(r["pair"] == pair for r in rows)]
    if key is None or not pairs:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.9 * len(pairs), 3.6), layout="constrained")
        for axes, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
            points = []
            for method, family in families.items():
                seconds, errors = (_values(rows, pair, method, k) for k in ("seconds", key))
                if family != "start" and seconds and errors:
                    points.append((float(np.mean(seconds)), float(np.mean(errors)), method))
            _pareto(axes, points, families)
            axes.set(xlabel="seconds per case", ylabel=f"{error_name(key)}, mm")
            for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
                _log_mm(axis, scale)
            axes.margins(x=0.15, y=0.15)
            axes.set_title(pair, loc="left", fontweight="bold")
        return _svg(figure)


def capture_plot(rows: Sequence[Mapping[str, Any]], families: Mapping[str, str]) -> str:
    """Error after against before; a line runs through the means of thirds of the cases.

    Drawn are what is proposed and each pair's best peers; the rest would hide them.
    """
    key = error_key(rows)
    pairs = [pair for pair in PAIRS if any(r["pair"] == pair and r["method"] == "identity" for r in rows)]
    if key is None or not pairs:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(pairs), 3.8), layout="constrained")
        for axes, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
            before = {r["case"]: r[key] for r in rows if _of(r, pair, "identity", key)}
            lines = iter(("-", "--", ":", "-."))
            for method in _drawn(rows, pair, families, key):
                after = {r["case"]: r[key] for r in rows if _of(r, pair, method, key) and r["case"] in before}
                x, y = (np.array([d[case] for case in sorted(after, key=before.__getitem__)]) for d in (before, after))
                colour, ours = FAMILY_COLOURS[families[method]], families[method] == "proposed"
                line = ("-" if method.endswith("refine") else "--") if ours else next(lines)
                axes.plot(x, y, "o", color=colour, markersize=3, alpha=0.5)
                thirds = [part for part in np.array_split(np.arange(len(x)), min(3, len(x))) if len(part)]
                axes.plot(
                    [x[part].mean() for part in thirds], [y[part].mean() for part in thirds], line, color=colour,
                    linewidth=2.0 if ours else 1.1, label=method,
                )  # fmt: skip
            top = max(before.values(), default=1.0)
            axes.plot([0, top], [0, top], color=PALE, linewidth=1, linestyle="--", label="nothing gained")
            # what ends further off than it began is a failure however far: it leaves through the top
            axes.set_ylim(0, 1.3 * top)
            axes.set(xlabel=f"{error_name(key)} before, mm", ylabel=f"{error_name(key)} after, mm")
            axes.set_title(pair, loc="left", fontweight="bold")
            axes.legend(fontsize=7, frameon=False, loc="upper left")
        return _svg(figure)


def _drawn(rows: Sequence[Mapping[str, Any]], pair: str, families: Mapping[str, str], key: str) -> list[str]:
    """What is proposed, and the four peers with the smallest mean error on the pair."""
    peers = {
        method: float(np.mean(values))
        for method, family in families.items()
        if family == "peer" and (values := _values(rows, pair, method, key))
    }
    ours = [method for method, family in families.items() if family == "proposed" and _values(rows, pair, method, key)]
    return [*sorted(peers, key=peers.__getitem__)[:4], *ours]


def _log_mm(axis: Axis, scale: Callable[..., None]) -> None:
    """A log axis with plain numbers at 1, 2, 5."""
    scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _of(row: Mapping[str, Any], pair: str, method: str, key: str) -> bool:
    return row["pair"] == pair and row["method"] == method and row.get(key) is not None


def _values(rows: Sequence[Mapping[str, Any]], pair: str, method: str, key: str) -> list[float]:
    return [float(row[key]) for row in rows if _of(row, pair, method, key)]


def _pareto(axes: Axes, points: list[tuple[float, float, str]], families: Mapping[str, str]) -> None:
    front: list[tuple[float, float]] = []
    for seconds, error, method in sorted(points):
        axes.plot(seconds, error, "o", color=FAMILY_COLOURS[families[method]], markersize=7)
        if not front or error < front[-1][1]:
            front.append((seconds, error))
    if front:
        axes.plot(*zip(*front, strict=True), color=PALE, linewidth=1, linestyle="--", zorder=0)
    _names_aside(axes, points, families)


def _names_aside(axes: Axes, points: list[tuple[float, float, str]], families: Mapping[str, str]) -> None:
    """The methods' names in a column at the right, in the order of their errors, each joined to its dot."""
    ordered = sorted(points, key=lambda point: point[1])
    for place, (seconds, error, method) in enumerate(ordered):
        height = (place + 0.5) / len(ordered)
        axes.annotate(
            method, (seconds, error), xytext=(1.04, height), textcoords="axes fraction", fontsize=7, va="center",
            color=FAMILY_COLOURS[families[method]], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
