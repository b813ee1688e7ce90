"""`hepalign evaluate`: the paper's tables for a release, beside its peers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.errors import EXIT_FAILED, UsageError

PEERS = "ants-rigid,ants-syn,greedy-nmi,greedy-wncc"


class SplitName(StrEnum):
    """Which cases."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    command(app, "evaluate")(evaluate)


def evaluate(
    cohort: Annotated[str, typer.Argument(help="A cohort's folder or s3:// prefix.")],
    out: Annotated[Path, typer.Option(help="Where report.html, table2.csv, cases.csv and results.json go.")],
    release: Annotated[str | None, typer.Option(help="A folder, models:/hepalign@champion or a run's URI.")] = None,
    baselines: Annotated[
        str, typer.Option(help="Peers, separated by commas.")
    ] = "ants-rigid,ants-syn,greedy-nmi,greedy-wncc",
    split: Annotated[SplitName, typer.Option(help="Which cases.")] = SplitName.TEST,
    ablate: Annotated[list[str], typer.Option(help="NAME=RELEASE, a further row; may be repeated.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 runs in this process.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute every case again.")] = False,
) -> Answer:
    """Evaluate a release on a cohort, against the peers; resumable per case."""
    others = dict(_name_and_release(word) for word in ablate)
    from hepalign.distributed.evaluation import evaluate_release

    evaluation = evaluate_release(
        cohort, release, out, split=split.value, baselines=[b for b in baselines.split(",") if b], ablate=others,
        workers=workers, fresh=fresh,
    )  # fmt: skip
    from hepalign.cli.table import render

    text = f"{render(evaluation.summary())}\nreport in {out / 'report.html'}"
    failed = [f"{f.case}/{f.method}" for f in evaluation.failures()]
    status = EXIT_FAILED if failed else 0
    return Answer({"out": str(out), "table": evaluation.summary(), "failed": failed}, text, status)


def _name_and_release(word: str) -> tuple[str, str]:
    name, equals, release = word.partition("=")
    if not equals or not name or not release:
        raise UsageError(f"--ablate takes NAME=RELEASE, not {word!r}", code="usage")
    return name, release
