"""What the report's page is filled with."""

from __future__ import annotations

from typing import Any

from hepalign.evaluation.report import _grid


def row(method: str, mean: float | None, n: int) -> dict[str, Any]:
    told = {"pair": "pCT-iCT", "structure": "liver", "metric": "tre_mm", "method": method, "mean": mean, "n": n}
    return told | {"sd": 0.1, "p": None, "effect": None, "p30": mean, "failed": 4 - n, "bar": False, "paper_mean": None}


def test_a_method_that_failed_on_the_hard_cases_is_not_the_best() -> None:
    table = [row("proposed-refine", 2.0, 4), row("ants-syn", 1.5, 3), row("greedy-nmi", 2.5, 4), row("flirt", None, 0)]
    (line,) = _grid(table, [told["method"] for told in table])
    assert [cell["text"] for cell in line["cells"] if cell["best"]] == ["2.00"]
