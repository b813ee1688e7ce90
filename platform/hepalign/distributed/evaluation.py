"""Spreading cases over a Ray cluster: evaluation and batch scoring."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from hepalign.cases.case import Case, Split
from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.distributed.cluster import ray_session, require_cpus
from hepalign.errors import HepalignError
from hepalign.evaluation.evaluate import DEFAULT_BASELINES, Evaluation, evaluate
from hepalign.evaluation.variants import Absent, exchanged_bundle, is_variant
from hepalign.inference.bundle import STAGES, Bundle, load_bundle
from hepalign.inference.whole_case import run_case
from hepalign.tracking.evaluations import log_evaluation
from hepalign.tracking.resolution import resolve_release

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
# A task whose node is lost is done again elsewhere this often.
RETRIES = 2
RESULT, MADE_FROM = "result.json", "made-from.json"


def ray_map(workers: int, cpus: float = 1.0) -> Map:
    """A `map` over Ray tasks: at most `workers` at a time, results as they come.

    `fn` is shipped once; an item whose node dies is done again.

    Raises:
        UsageError: `too_few_cpus` for a cluster that cannot run even one.
    """

    def spread(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        require_cpus(cpus, "each task")
        call = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_call)
        shipped = ray.put(fn)
        waiting = list(items)[::-1]
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(call.remote(shipped, waiting.pop()))
            done, running = ray.wait(running)
            yield from ray.get(done)

    return spread


def evaluate_release(
    cohort: str,
    release: str | None,
    out: Path,
    *,
    split: Split | Literal["all"] = "test",
    baselines: Sequence[str] = DEFAULT_BASELINES,
    ablate: Mapping[str, str] | None = None,
    workers: int = 0,
    fresh: bool = False,
    both_ways: bool = True,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """`evaluation.evaluate` for a named release, in this process or on Ray; its means go to MLflow.

    Args:
        cohort: a folder or s3:// prefix.
        release: as `resolve_release`.
        ablate: name to another release, to `STAGE:FOLDER` (that training's network in this release), or to a word
            of `evaluation.variants`; what cannot be loaded is skipped by name, with the reason.
        workers: Ray tasks at a time; 0 works in this process.
        both_ways: measure the inverse consistency too.
        threads: of every method; two, and one on Ray, unless given. Ray reserves as many CPUs for each task.
        seed: for the peers that sample, and for untrained weights.
        progress: receives (done, total), pairs of a case and a method.
    """
    opened, bundle = open_cohort(cohort), load_bundle(resolve_release(release))
    others = {name: _ablation(bundle, word) for name, word in (ablate or {}).items()}
    threads = threads or (1 if workers else 2)
    with _spread(workers, threads) as spread:
        return evaluate(
            opened,
            bundle,
            out,
            split=split,
            baselines=baselines,
            ablate=others,
            map=spread,
            log=lambda means: log_evaluation(means, out),
            progress=progress,
            fresh=fresh,
            threads=threads,
            seed=seed,
            both_ways=both_ways,
        )


def _ablation(bundle: Bundle, word: str) -> Bundle | str | Absent:
    if is_variant(word):
        return word
    stage, colon, folder = word.partition(":")
    try:
        if colon and stage in STAGES:
            return exchanged_bundle(bundle, stage, Path(folder))
        return load_bundle(resolve_release(word))
    except HepalignError as error:
        return Absent(error.message)


def score_cohort(cohort: str, release: str | None, out: Path, *, workers: int = 0) -> list[dict[str, str]]:
    """Plan and guide every case of a cohort: one folder a case, and `summary.csv`.

    A case that this very release finished from these very files is skipped.

    Returns:
        One row a case: `case`, `status` (accept, review, reject or failed), `message`.
    """
    opened, bundle = open_cohort(cohort), load_bundle(resolve_release(release))
    out.mkdir(parents=True, exist_ok=True)
    case_ids = [case.id for case in opened.cases()]
    rows = {case.id: row for case in opened.cases() if (row := _scored(out, bundle, opened, case)) is not None}
    todo = [case_id for case_id in case_ids if case_id not in rows]
    with _spread(workers) as spread:
        for row in spread(_Score(cohort, bundle, out.resolve()), todo):
            rows[row["case"]] = row
            _say(f"batch: {len(rows)}/{len(case_ids)}, {row['case']} {row['status']}")
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", "status", "message"])
        writer.writeheader()
        writer.writerows(rows[case_id] for case_id in case_ids)
    return [rows[case_id] for case_id in case_ids]


@dataclass(frozen=True)
class _Score:
    """Scores one case; crosses to Ray's tasks."""

    cohort: str
    bundle: Bundle
    out: Path

    def __call__(self, case_id: str) -> dict[str, str]:
        opened = open_cohort(self.cohort)
        case = next(case for case in opened.cases() if case.id == case_id)
        folder = self.out / case_id
        # what another release left must not pass for this one's, however this ends
        for name in (MADE_FROM, RESULT):
            (folder / name).unlink(missing_ok=True)
        try:
            result = run_case(self.bundle, opened, case, folder)
        except HepalignError as error:
            return {"case": case_id, "status": "failed", "message": f"[{error.code}] {error.message}"}
        (folder / MADE_FROM).write_text(json.dumps(_made_from(self.bundle, opened, case)), encoding="utf-8")
        return {"case": case_id, "status": str(result["quality"]["status"]), "message": ""}


def _made_from(bundle: Bundle, opened: Cohort, case: Case) -> dict[str, Any]:
    """What a case's result depends on, as digests: the release's networks and the case's files."""
    files = {name: opened.entry(case, name).sha256 for name in case.files}
    return {"weights": dict(bundle.digests), "configs": bundle.config_digests, "files": files}


def _scored(out: Path, bundle: Bundle, opened: Cohort, case: Case) -> dict[str, str] | None:
    """The row of a case that an earlier run finished with the same release from the same files."""
    try:
        made_from, result = (
            json.loads((out / case.id / name).read_text(encoding="utf-8")) for name in (MADE_FROM, RESULT)
        )
        if made_from != _made_from(bundle, opened, case):
            return None
        return {"case": case.id, "status": str(result["quality"]["status"]), "message": ""}
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def _spread(workers: int, cpus: int = 1) -> Iterator[Map]:
    if workers == 0:
        yield map
        return
    with ray_session():
        yield ray_map(workers, float(cpus))


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    return fn(item)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
