"""Two ways of doing one thing, timed in turns, and the ratio of their times beside its target."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int = 15, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each way, one after another in every round, after one round that does not count.

    By default CPU seconds of this process, so that what else the machine does hardly matters: pin the threads to one.
    With several threads or processes, `time.perf_counter` on a quiet machine.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if turn:
                times[name].append(clock() - start)
    return times


def ratio(
    figure: str,
    times: Mapping[str, Sequence[float]],
    over: str,
    under: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **facts: object,
) -> float:
    """Print the ratio over / under of each round (median, quartiles) as one line of JSON, and return its median."""
    ratios = [above / below for above, below in zip(times[over], times[under], strict=True)]
    seconds = {name: round(statistics.median(values), 5) for name, values in times.items()}
    return _line(figure, ratios, "x", at_least, at_most, {"median_s": seconds, **facts})


def single(
    figure: str,
    values: Sequence[float],
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **facts: object,
) -> float:
    """Print one measured quantity (median, quartiles) as one line of JSON, and return its median."""
    return _line(figure, values, unit, at_least, at_most, facts)


def _line(
    figure: str,
    values: Sequence[float],
    unit: str,
    at_least: float | None,
    at_most: float | None,
    facts: Mapping[str, object],
) -> float:
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (middle,) * 3
    line: dict[str, object] = {"figure": figure, "value": round(middle, 4), "unit": unit, "rounds": len(values)}
    line["quartiles"] = [round(low, 4), round(high, 4)]
    if at_least is not None:
        line |= {"target": f"≥ {at_least:g}", "met": middle >= at_least, "times_target": round(middle / at_least, 3)}
    if at_most is not None:
        line |= {"target": f"≤ {at_most:g}", "met": middle <= at_most}
        if middle > 0:
            line["times_target"] = round(at_most / middle, 3)
    print(json.dumps(line | dict(facts), ensure_ascii=False), flush=True)
    return middle
