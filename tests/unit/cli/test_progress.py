"""Progress of long work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hepalign.cli import progress


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *calls: tuple[float, int, int]
) -> list[str]:
    """The lines after calls of (seconds since the start, done, total)."""
    now = iter((0.0, *(seconds for seconds, _, _ in calls)))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    steps = progress.Steps("work")
    for _, done, total in calls:
        steps(done, total)
    return [line.strip() for line in capsys.readouterr().err.splitlines()]


def test_the_time_left_goes_by_the_pieces_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = (10.0, 1, 4), (20.0, 2, 4), (20.5, 3, 4), (30.0, 4, 4)
    assert said(monkeypatch, capsys, *calls) == [
        "work: 1/4, about 30 s left", "work: 2/4, about 20 s left", "work: 4/4, about 0 s left"
    ]  # fmt: skip


def test_what_was_found_finished_took_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, capsys, (60.0, 91, 100), (120.0, 92, 100)) == [
        "work: 91/100, about 9 min left", "work: 92/100, about 8 min left"
    ]  # fmt: skip
