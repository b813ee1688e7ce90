"""Whole cohorts made by us: phantoms, and pairs simulated from a real CT."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from hepalign.cases.case import Split
from hepalign.cases.phantom import PhantomCase, make_case
from hepalign.cases.phantom.make import FIELD_OF_VIEW_MM
from hepalign.cases.sources.simulate import simulate_pair
from hepalign.cases.writer import CohortWriter
from hepalign.errors import UsageError
from hepalign.image.volume import Volume

# told after each case how many are done, and of how many
Progress = Callable[[int, int], None]


class Make(Protocol):
    """Makes the case of a seed; can be pickled."""

    def __call__(self, *, seed: int) -> PhantomCase:
        """The case; the same seed gives the same bits."""


def phantom_cohort(
    out: Path | str,
    *,
    cases: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float | None,
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
        spacing_mm: isotropic spacing of the CT grid; None scales it to the phantom's field of view.
        randomised: random intensities per organ, for contrast-invariant training.
        split: where these patients go; None draws the paper's shares.
        workers: processes that generate side by side.
        progress: called after each case.

    Raises:
        UsageError: `case_differs` where a case is there already on another grid.
    """
    make = partial(make_case, shape=shape, spacing_mm=spacing_mm, randomised=randomised)
    kind = "-randomised" * randomised
    seeds = {f"phantom{kind}-{seed + n:05d}": seed + n for n in range(cases)}
    # one anatomy, however its organs look, is one patient
    patients = {id_: f"phantom-{number:05d}" for id_, number in seeds.items()}
    writer = CohortWriter(out)
    _check_grids(writer, seeds, shape, spacing_mm or FIELD_OF_VIEW_MM / shape[0])
    _write(writer, make, seeds, patients, workers, progress, split=split)


def simulated_cohort(
    out: Path | str,
    *,
    ct: Volume,
    liver: Volume | None,
    name: str,
    cases: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float | None,
    tumour: Volume | None = None,
    phase: bool = False,
    sliding: bool = False,
    split: Split | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `cases` pCT/iCT pairs simulated from one real CT; all belong to one patient.

    Args:
        out, cases, seed, shape, split, workers, progress: as `phantom_cohort`.
        ct, liver, tumour, spacing_mm, phase, sliding: as `simulate_pair`.
        name: the patient's pseudonym; every CT needs another, or its pairs count as those that are there.

    Raises:
        UsageError: `case_differs` as `phantom_cohort`; the spacing is compared where one is given.
    """
    make = partial(
        simulate_pair, ct, liver, phase=phase, tumour=tumour, shape=shape, spacing_mm=spacing_mm, sliding=sliding
    )
    kind = "-phase" * phase + "-sliding" * sliding
    seeds = {f"{name}{kind}-{seed + n:05d}": seed + n for n in range(cases)}
    writer = CohortWriter(out)
    _check_grids(writer, seeds, shape, spacing_mm)
    _write(writer, make, seeds, dict.fromkeys(seeds, name), workers, progress, split=split)


def _check_grids(
    writer: CohortWriter, ids: Iterable[str], shape: tuple[int, int, int], spacing_mm: float | None
) -> None:
    """Refuse cases that are there on another grid: they would pass for those asked for."""
    for id_ in filter(writer.has, ids):
        grid = writer.geometry(id_, "pct")
        same = spacing_mm is None or np.allclose(grid.spacing_mm, spacing_mm, rtol=1e-3)
        if grid.shape != shape or not same:
            there = f"{','.join(map(str, grid.shape))} voxels of {grid.spacing_mm[0]:.4g} mm"
            message = f"case {id_} is in the cohort with {there}; ask for that grid, other seeds or another cohort"
            raise UsageError(message, code="case_differs")


def _write(
    writer: CohortWriter,
    make: Make,
    seeds: dict[str, int],
    patients: dict[str, str],
    workers: int,
    progress: Progress | None,
    split: Split | None = None,
) -> None:
    missing = {id_: seed for id_, seed in seeds.items() if not writer.has(id_)}
    done = len(seeds) - len(missing)
    with _results(make, missing, workers) as results:
        for id_, made in results:
            writer.add(
                id_,
                patients[id_],
                volumes=made.volumes,
                fields=made.fields,
                landmarks=made.landmarks,
                attributes=made.attributes,
                split=split,
            )
            done += 1
            if progress is not None:
                progress(done, len(seeds))
    writer.finish(seed=0)


@contextmanager
def _results(make: Make, seeds: dict[str, int], workers: int) -> Iterator[Iterator[tuple[str, PhantomCase]]]:
    if workers <= 1 or len(seeds) <= 1:
        yield ((id_, make(seed=seed)) for id_, seed in seeds.items())
        return
    # spawn: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(seeds)), context, initializer=_keep, initargs=(make,)) as pool:
        yield _as_made(pool, seeds)


def _as_made(pool: ProcessPoolExecutor, seeds: dict[str, int]) -> Iterator[tuple[str, PhantomCase]]:
    waiting = {pool.submit(_make_one, seed): id_ for id_, seed in seeds.items()}
    for future in as_completed(waiting):
        # popped: a future that is kept keeps its volumes
        yield waiting.pop(future), future.result()


_kept: list[Make] = []


def _keep(make: Make) -> None:
    """In a worker, once: a real CT is sent to it and prepared a single time."""
    _kept.append(make)


def _make_one(seed: int) -> PhantomCase:
    return _kept[0](seed=seed)
