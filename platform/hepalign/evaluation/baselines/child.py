"""A peer's own process: `python -m hepalign.evaluation.baselines.child FOLDER…` does the task that lies in each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepalign.evaluation.baselines.prepare import prepare, start
from hepalign.evaluation.baselines.problem import Problem
from hepalign.evaluation.baselines.task import COMPLAINT, Registered, Task, read_task, write_result
from hepalign.evaluation.peak_memory import own_peak_mb, restart_own_peak
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3
from hepalign.transform.displacement import DisplacementField, compose

Engine = Callable[[Problem], DisplacementField]


def main(folders: list[str]) -> None:
    """Do the tasks one after the other; what goes wrong becomes a line that the parent passes on."""
    for folder in map(Path, folders):
        try:
            write_result(solve(read_task(folder)), folder)
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises is a row of the table
            text = " ".join(str(error).split())
            (folder / COMPLAINT).write_text(f"{type(error).__name__}: {text}", encoding="utf-8")


def solve(task: Task) -> Registered:
    """Prepare both images, bring them near, register; then the other way round where it is asked for."""
    module, _, function = task.engine.rpartition(".")
    engine: Engine = getattr(import_module(f"hepalign.evaluation.baselines.{module}"), function)
    restart_own_peak()
    clock = [time.perf_counter()]
    moving, fixed = prepare(task.moving, task.modalities[0]), prepare(task.fixed, task.modalities[1])
    clock.append(time.perf_counter())
    nearer, matrix = _brought_near(moving, fixed, task.valid)
    clock.append(time.perf_counter())
    found = engine(Problem(nearer, fixed, task.valid, task.modalities, task.threads, task.seed))
    field = compose(DisplacementField.from_linear(matrix, found.geometry), found)
    clock.append(time.perf_counter())
    steps = dict(zip(("prepare", "start", "register"), np.diff(clock).tolist(), strict=True))
    peak_mb = own_peak_mb()
    backward = _backward(task, engine, moving, fixed) if task.both_ways else None
    return Registered(field, steps, peak_mb, backward)


def _backward(task: Task, engine: Engine, moving: Volume, fixed: Volume) -> DisplacementField | None:
    """The images exchanged; None when that way fails, which the count of the inverse consistency shows."""
    everywhere = np.ones(moving.geometry.shape, bool)
    nearer, matrix = _brought_near(fixed, moving, everywhere)
    modalities = (task.modalities[1], task.modalities[0])
    try:
        found = engine(Problem(nearer, moving, everywhere, modalities, task.threads, task.seed))
    except Exception:  # noqa: BLE001 - the way that was asked for is done
        return None
    return compose(DisplacementField.from_linear(matrix, found.geometry), found)


def _brought_near(moving: Volume, fixed: Volume, valid: Mask3) -> tuple[Volume, NDArray[np.float64]]:
    """The moving image under the common rigid start: its point matrix(x) now stands at x."""
    matrix = start(moving, fixed, valid)
    geometry = Geometry(moving.geometry.shape, np.linalg.inv(matrix) @ moving.geometry.affine)
    return Volume(moving.data, geometry), matrix


if __name__ == "__main__":
    main(sys.argv[1:])
