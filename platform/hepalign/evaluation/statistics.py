"""Paired comparisons of methods over the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

ROBUST_PERCENTILE = 30.0


@dataclass(frozen=True)
class Comparison:
    """A method against the reference over the cases that both have.

    Args:
        n: how many cases.
        p: two-sided Wilcoxon signed-rank p, Holm-corrected over the methods of one table row; None below two cases.
        effect: matched-pairs rank-biserial correlation, −1 … 1; positive where the reference is better.
        difference: median of reference minus method, in the metric's unit.
    """

    n: int
    p: float | None
    effect: float | None
    difference: float | None


def compare(
    reference: Mapping[str, float], others: Mapping[str, Mapping[str, float]], *, larger_is_better: bool
) -> dict[str, Comparison]:
    """Each other method against the reference; values are keyed by case.

    Source: Wilcoxon 1945 (zeros split, Pratt), Holm 1979; effect size after Kerby 2014.
    """
    raw: dict[str, float] = {}
    found: dict[str, Comparison] = {}
    for name, values in others.items():
        shared = sorted(reference.keys() & values.keys())
        difference = np.array([reference[case] - values[case] for case in shared])
        if len(shared) < 2:
            found[name] = Comparison(len(shared), None, None, float(difference[0]) if len(shared) else None)
            continue
        gain = difference if larger_is_better else -difference
        raw[name] = 1.0 if not difference.any() else float(wilcoxon(difference, zero_method="zsplit").pvalue)
        found[name] = Comparison(len(shared), None, rank_biserial(gain), float(np.median(difference)))
    corrected = holm(list(raw.values()))
    for name, p in zip(raw, corrected, strict=True):
        old = found[name]
        found[name] = Comparison(old.n, p, old.effect, old.difference)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the k-th smallest of m times m − k + 1, never falling, at most 1.

    SciPy has none, and statsmodels' collects the whole process's garbage at every call: half a second beside torch.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in corrected]


def rank_biserial(gains: NDArray[np.float64]) -> float:
    """(sum of the ranks of gains − sum of the ranks of losses) / sum of all ranks, ties and zeros by mean ranks."""
    kept = gains[gains != 0]
    if not len(kept):
        return 0.0
    ranks = rankdata(np.abs(kept))
    return float((ranks * np.sign(kept)).sum() / ranks.sum())


def robust_percentile(values: Sequence[float], *, larger_is_better: bool) -> float:
    """The value that the worst 30 % of the cases do not reach (Learn2Reg's robustness)."""
    share = ROBUST_PERCENTILE if larger_is_better else 100 - ROBUST_PERCENTILE
    return float(np.percentile(values, share))
