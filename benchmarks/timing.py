"""Two ways of doing one thing, timed in turns in one process, and the ratio of their times."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """CPU seconds of each way, one after another in every round, after one round that does not count.

    CPU time of this process, so that what else the machine does hardly matters; pin the threads to one.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def report(figure: str, times: Mapping[str, list[float]], ours: str, peer: str, target: str) -> float:
    """Print the ratio peer / ours with its quartiles over the rounds as one line of JSON, and return it."""
    ratios = [theirs / own for theirs, own in zip(times[peer], times[ours], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        json.dumps(
            {
                "figure": figure,
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "target": target,
                "median_ms": {name: round(1000 * statistics.median(values), 2) for name, values in times.items()},
                "machine": platform.processor() or platform.machine(),
            }
        )
    )
    return middle
