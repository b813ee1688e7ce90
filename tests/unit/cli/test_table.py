"""Rows for people."""

from __future__ import annotations

from hepalign.cli.evaluate import readable
from hepalign.cli.table import render


def test_a_long_word_is_whole() -> None:
    place = "/a/folder/" + "x" * 200
    shown = render([{"place": place, "status": "ok"}])
    assert shown.count("x") == 200
    assert "ok" in shown


def test_the_row_of_an_evaluation_is_one_line() -> None:
    row = {
        "pair": "pCT-iCT", "structure": "liver", "metric": "dense_tre_mm", "method": "proposed-refine",
        "family": "proposed", "bar": False, "mean": 2.719844484403335, "sd": 0.0011189399145909, "n": 10, "p30": 1 / 3,
        "p": 0.0625, "effect": 2 / 3, "median_difference": -12.93221, "failed": 0, "paper_mean": 4.37, "paper_sd": 3.3,
        "paper_note": None,
    }  # fmt: skip
    _, shown = render([readable(row)]).splitlines()
    assert shown.split() == [
        "pCT-iCT", "liver", "dense_tre_mm", "proposed-refine", "proposed", "False", "2.72", "0.001119", "10", "0.3333",
        "0.0625", "0.6667", "-12.93", "0", "4.37", "3.3",
    ]  # fmt: skip
