"""Whole cohorts made by us: phantoms, and pairs simulated from a real CT."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hepalign.cases.case import Split
from hepalign.cases.phantom import PhantomCase, make_case
from hepalign.cases.sources.simulate import simulate_pair
from hepalign.cases.writer import CohortWriter
from hepalign.image.volume import Volume

# told after each case how many are done, and of how many
Progress = Callable[[int, int], None]


def phantom_cohort(
    out: Path | str,
    *,
    cases: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float,
    randomised: bool = False,
    split: Split | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `cases` phantom triplets as a cohort; case n is seeded by `seed + n`, so runs resume and repeat.

    Args:
        out: the cohort's folder or s3:// prefix.
        cases: how many patients (one case each).
        seed: the first case's seed.
        shape: voxels of the CT grid.
        spacing_mm: isotropic spacing of the CT grid.
        randomised: random intensities per organ, for contrast-invariant training.
        split: where these patients go; None draws the paper's shares.
        workers: processes that generate side by side.
        progress: called after each case.
    """
    writer = CohortWriter(out)
    make = partial(make_case, shape=shape, spacing_mm=spacing_mm, randomised=randomised)
    ids = {f"phantom-{seed + n:05d}": partial(make, seed + n) for n in range(cases)}
    _write(writer, ids, workers, progress, split=split)


def simulated_cohort(
    out: Path | str,
    *,
    ct: Volume,
    liver: Volume | None,
    name: str,
    cases: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float,
    phase: bool = False,
    split: Split | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `cases` pCT/iCT pairs simulated from one real CT; all belong to one patient, `name`."""
    writer = CohortWriter(out)
    make = partial(simulate_pair, ct, liver, phase=phase, shape=shape, spacing_mm=spacing_mm)
    ids = {f"{name}-{seed + n:05d}": partial(make, seed=seed + n) for n in range(cases)}
    _write(writer, ids, workers, progress, patient=name, split=split)


def _write(
    writer: CohortWriter,
    makers: dict[str, partial[PhantomCase]],
    workers: int,
    progress: Progress | None,
    patient: str | None = None,
    split: Split | None = None,
) -> None:
    missing = {id_: make for id_, make in makers.items() if not writer.has(id_)}
    done = len(makers) - len(missing)
    with _results(missing, workers) as results:
        for id_, made in results:
            writer.add(
                id_,
                patient or id_,
                volumes=made.volumes,
                fields=made.fields,
                landmarks=made.landmarks,
                attributes=made.attributes,
                split=split,
            )
            done += 1
            if progress is not None:
                progress(done, len(makers))
    writer.finish(seed=0)


@contextmanager
def _results(makers: dict[str, partial[PhantomCase]], workers: int) -> Iterator[Iterator[tuple[str, PhantomCase]]]:
    if workers <= 1 or len(makers) <= 1:
        yield ((id_, make()) for id_, make in makers.items())
        return
    # spawn: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(makers)), mp_context=context) as pool:
        yield _as_made(pool, makers)


def _as_made(pool: ProcessPoolExecutor, makers: dict[str, partial[PhantomCase]]) -> Iterator[tuple[str, PhantomCase]]:
    waiting = {pool.submit(make): id_ for id_, make in makers.items()}
    for future in as_completed(waiting):
        yield waiting[future], future.result()
