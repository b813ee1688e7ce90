"""Tests and effect sizes against published or hand-made values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wilcoxon

from hepalign.evaluation.statistics import compare, holm, rank_biserial, robust_percentile


def test_holm_of_a_textbook_example() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_rank_biserial_bounds_and_a_mixed_case() -> None:
    assert rank_biserial(np.array([1.0, 2.0, 3.0])) == 1.0
    assert rank_biserial(np.array([-1.0, -2.0])) == -1.0
    # ranks 1, 2, 3: gains hold 1 + 3, losses 2
    assert rank_biserial(np.array([1.0, -2.0, 3.0])) == pytest.approx((4 - 2) / 6)
    assert rank_biserial(np.zeros(3)) == 0.0


def test_comparison_is_paired_by_case_and_signed_by_what_is_better() -> None:
    ours = {f"c{i}": 2.0 + 0.01 * i for i in range(8)}
    theirs = {f"c{i}": 3.0 + 0.02 * i for i in range(1, 9)}
    found = compare(ours, {"peer": theirs}, larger_is_better=False)["peer"]
    assert found.n == 7
    assert found.effect == 1.0
    difference = [ours[f"c{i}"] - theirs[f"c{i}"] for i in range(1, 8)]
    assert found.p == pytest.approx(wilcoxon(difference).pvalue)
    assert found.difference == pytest.approx(np.median(difference))
    assert compare(ours, {"peer": theirs}, larger_is_better=True)["peer"].effect == -1.0


def test_wilcoxon_of_a_published_example() -> None:
    # Hollander & Wolfe 1973, table 3.1 (depression scales before and after): T+ = 40 of 45, one-sided p = 0.0195
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    first, second = ({str(k): value for k, value in enumerate(values)} for values in (before, after))
    found = compare(second, {"before": first}, larger_is_better=False)["before"]
    assert found.p == pytest.approx(0.0390625)
    assert found.effect == pytest.approx((40 - 5) / 45)


def test_holm_spans_the_methods_of_one_line() -> None:
    ours = {str(i): float(i) for i in range(8)}
    shifted = {str(i): i + 1.0 + 0.1 * i for i in range(8)}
    alone = compare(ours, {"a": shifted}, larger_is_better=False)["a"].p
    both = compare(ours, {"a": shifted, "b": shifted}, larger_is_better=False)["a"].p
    assert alone is not None
    assert both == pytest.approx(2 * alone)


def test_equal_values_are_no_evidence() -> None:
    same = {str(i): 1.0 for i in range(5)}
    assert compare(same, {"peer": same}, larger_is_better=True)["peer"].p == 1.0


def test_one_case_gives_a_difference_and_no_p() -> None:
    found = compare({"a": 2.0}, {"peer": {"a": 5.0}}, larger_is_better=False)["peer"]
    assert (found.n, found.p, found.difference) == (1, None, -3.0)


def test_robust_percentile_counts_from_the_bad_end() -> None:
    values = list(np.arange(11.0))
    assert robust_percentile(values, larger_is_better=True) == pytest.approx(3.0)
    assert robust_percentile(values, larger_is_better=False) == pytest.approx(7.0)
