"""One command for the paper's tables: every method on every case, resumable, and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.errors import BadInputError, UsageError
from hepalign.evaluation import report, tables
from hepalign.evaluation.baselines import BASELINES, find_baselines
from hepalign.evaluation.methods import (
    Method,
    Running,
    chained_peer_method,
    identity_method,
    peer_method,
    proposed_method,
)
from hepalign.evaluation.provenance import provenance
from hepalign.evaluation.rerun import compare_runs
from hepalign.evaluation.unit import RECORD_SCHEMA, Record, Work
from hepalign.evaluation.variants import TRAINED_ABLATIONS, Absent, untrained_reason, variant_method
from hepalign.inference.bundle import Bundle

DEFAULT_BASELINES = ("ants-rigid", "ants-syn", "greedy-nmi", "greedy-wncc")
RESULTS_SCHEMA = 2
WORK = "work"
Map = Callable[[Callable[[tuple[str, str]], Record], Iterable[tuple[str, str]]], Iterable[Record]]


@dataclass(frozen=True)
class Failure:
    """A pair that a method could not do."""

    case: str
    method: str
    pair: str
    message: str


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its folder and what results.json holds."""

    out: Path
    results: Mapping[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """The rows of table2.csv: pair, structure, metric, method, mean, sd, n, p …"""
        rows: list[dict[str, Any]] = self.results["table"]
        return rows

    def failures(self) -> list[Failure]:
        """What failed, in the order of the cases."""
        return [
            Failure(row["case"], row["method"], row["pair"], row["message"])
            for row in self.results["cases"]
            if row["status"] == "failed"
        ]

    def metrics(self) -> dict[str, float]:
        """Flat means for a log: `pCT-iCT/liver/dice/proposed-refine`."""
        return {
            f"{row['pair']}/{row['structure']}/{row['metric']}/{row['method']}": row["mean"]
            for row in self.summary()
            if row["mean"] is not None
        }


def evaluate(
    cohort: Cohort,
    bundle: Bundle,
    out: Path,
    *,
    split: Split | Literal["all"] = "test",
    baselines: Sequence[str] = DEFAULT_BASELINES,
    ablate: Mapping[str, Bundle | str | Absent] | None = None,
    map: Map = map,
    log: Callable[[Mapping[str, float]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    fresh: bool = False,
    threads: int = 2,
    seed: int = 0,
    both_ways: bool = True,
) -> Evaluation:
    """Run every method on every case of a split and write its report and tables.

    The files are report.html, table2.csv, cases.csv, images.csv and results.json.

    Each (case, method) is kept under `out/work` as it finishes, so a broken run goes on where it stopped; a record
    made with another release, cohort, code, seed or thread count is not reused.

    Args:
        cohort: where the cases are.
        bundle: the release; it is evaluated with both engines, `fast` and `refine`.
        split: train, val, test or all.
        baselines: names of `hepalign.evaluation.baselines.BASELINES`; one that cannot run here is named in the report.
        ablate: name to another release, or to a word of `variants.VARIANTS` (or `PEER@inpainted`), which changes one
            part of this release's chain, or to why it cannot run here.
        map: the builtin, or one that spreads the calls; results come in any order.
        log: receives the flat means once.
        progress: receives (done, total).
        fresh: compute everything again; the results say how far it stands from what was kept.
        threads: for every peer, and for ours.
        seed: for the peers that sample, and for untrained weights.
        both_ways: register every pair with its images exchanged as well, for the inverse consistency; it doubles the
            peers' work and is not in their seconds.

    Raises:
        BadInputError: `empty_split`.
        UsageError: `unknown_baseline`, or `usage` for an ablation named like a method.
    """
    cases = cohort.cases(None if split == "all" else split)
    if not cases:
        raise BadInputError(f"cohort {cohort.name} has no case in its {split} split", code="empty_split")
    running = Running(threads, seed, both_ways)
    methods, skipped = _methods(bundle, baselines, ablate or {}, running)
    facts = provenance(cohort, bundle, split=split, running=running)
    facts["ablations"] = {n: dict(other.digests) for n, other in (ablate or {}).items() if isinstance(other, Bundle)}
    keys = {name: _key(facts, method, (ablate or {}).get(name)) for name, method in methods.items()}
    torch.set_num_threads(threads)
    units = [(case.id, name) for case in cases for name in methods]
    kept = {unit: record for unit in units if (record := _kept(out / WORK, unit, keys[unit[1]])) is not None}
    records = _run(Work(cohort, methods), units, {} if fresh else kept, out / WORK, keys, map, progress)
    results = {
        "schema": RESULTS_SCHEMA,
        "provenance": facts,
        "methods": [{"name": m.name, "family": m.family, "about": m.about} for m in methods.values()],
        "skipped": skipped,
        "rerun": compare_runs(kept.values(), records) if fresh and kept else None,
        **tables.collect(records, {name: method.family for name, method in methods.items()}),
    }
    tables.write(results, out)
    report.write(results, records, out / "report.html")
    evaluation = Evaluation(out, results)
    if log is not None:
        log(evaluation.metrics())
    return evaluation


def _methods(
    bundle: Bundle, baselines: Sequence[str], ablate: Mapping[str, Bundle | str | Absent], running: Running
) -> tuple[dict[str, Method], list[dict[str, str]]]:
    methods = [identity_method()]
    reasons = {baseline.name: baseline.missing() for baseline in find_baselines(list(baselines))}
    skipped = [{"name": name, "reason": reason} for name, reason in reasons.items() if reason is not None]
    present = {name: BASELINES[name] for name, reason in reasons.items() if reason is None}
    methods += [peer_method(baseline, running) for baseline in present.values()]
    if {"greedy-nmi", "greedy-wncc"} <= present.keys():
        methods.append(chained_peer_method(present["greedy-nmi"], present["greedy-wncc"], running))
    methods += [proposed_method(bundle, "fast", running), proposed_method(bundle, "refine", running)]
    for name, other in ablate.items():
        if isinstance(other, Absent):
            skipped.append({"name": name, "reason": other.reason})
        elif isinstance(other, str):
            methods.append(variant_method(other, name, bundle, running))
        else:
            methods.append(proposed_method(other, "refine", running, name=name, family="ablation"))
    skipped += [{"name": n, "reason": untrained_reason(n)} for n in TRAINED_ABLATIONS if n not in ablate]
    found = {method.name: method for method in methods}
    if len(found) != len(methods):
        raise UsageError("an ablation has the name of another method: give it one of its own", code="usage")
    return found, skipped


def _key(facts: Mapping[str, Any], method: Method, other: Bundle | str | Absent | None) -> str:
    """What a kept record depends on, as one digest."""
    ours = method.family in ("proposed", "ablation")
    release = [facts["release"][name] for name in ("digests", "config_digests")] if ours else None
    ablated = [dict(other.digests), other.config_digests] if isinstance(other, Bundle) else str(other)
    depends = [
        RECORD_SCHEMA,
        facts["code_digest" if ours else "peers_code_digest"],
        facts["cohort"]["digest"],
        facts["threads"],
        facts["seed"],
        facts["both_ways"],
        # what our own code is, its digest says
        {name: version for name, version in facts["versions"].items() if name != "hepalign"},
        method.about,
        release,
        ablated,
    ]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _run(
    work: Work,
    units: Sequence[tuple[str, str]],
    kept: Mapping[tuple[str, str], Record],
    folder: Path,
    keys: Mapping[str, str],
    spread: Map,
    progress: Callable[[int, int], None] | None,
) -> list[Record]:
    folder.mkdir(parents=True, exist_ok=True)
    found = dict(kept)
    for record in spread(work, [unit for unit in units if unit not in found]):
        unit = record["case"], record["method"]
        found[unit] = record
        target = _record_path(folder, unit)
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps({"key": keys[unit[1]], "record": record}), encoding="utf-8")
        partial.replace(target)
        if progress is not None:
            progress(len(found), len(units))
    return [found[unit] for unit in units]


def _record_path(folder: Path, unit: tuple[str, str]) -> Path:
    return folder / f"{unit[0]}--{unit[1].replace('/', '_')}.json"


def _kept(folder: Path, unit: tuple[str, str], key: str) -> Record | None:
    path = _record_path(folder, unit)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if stored.get("key") != key or any(row["status"] == "failed" for row in stored["record"]["rows"]):
        return None
    record: Record = stored["record"]
    return record
