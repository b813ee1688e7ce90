"""Peers in processes of their own: threads pinned before any library loads, memory their own, a crash only a row."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hepalign.evaluation.baselines.task import COMPLAINT, FACTS, Registered, Task, read_result, write_task

# Far beyond the slowest peer on a full-size pair (elastix, both ways): what takes longer has hung.
TIME_LIMIT_S = 1800.0
THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def run_apart(tasks: Sequence[Task], *, time_limit_s: float = TIME_LIMIT_S) -> list[Registered | str]:
    """Do tasks of one thread count in a fresh Python process; one that ends it is a complaint, the rest get another.

    Args:
        time_limit_s: for each task; a process that has used up the limits of its tasks is ended.

    Returns:
        For each task what came back, or one line: the peer's own complaint, the signal that ended it, the time limit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(tasks))]
        for folder, task in zip(folders, tasks, strict=True):
            folder.mkdir()
            write_task(task, folder)
        while waiting := [folder for folder in folders if not _ended(folder)]:
            reason = _run(waiting, tasks[0].threads, time_limit_s * len(waiting))
            # whatever did not come to its end took the process with it: the first, as they go in order
            if stopped := next((folder for folder in waiting if not _ended(folder)), None):
                (stopped / COMPLAINT).write_text(reason, encoding="utf-8")
        return [_result(folder) for folder in folders]


def _run(folders: Sequence[Path], threads: int, time_limit_s: float) -> str:
    """One process for these folders, in order; why it ended."""
    packages = os.pathsep.join(str(Path(place).resolve()) for place in sys.path)
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": packages}
    # -P, and the first task's folder to work in: elastix leaves files where it stands
    call = [sys.executable, "-P", "-m", "hepalign.evaluation.baselines.child", *map(str, folders)]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            call, cwd=folders[0], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=time_limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {time_limit_s:g} s"
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}"
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"its process ended with status {done.returncode}" + (f": {last[0]}" if last else "")


def _ended(folder: Path) -> bool:
    return (folder / FACTS).exists() or (folder / COMPLAINT).exists()


def _result(folder: Path) -> Registered | str:
    if (folder / FACTS).exists():
        return read_result(folder)
    return (folder / COMPLAINT).read_text(encoding="utf-8")
