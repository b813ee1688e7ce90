"""`hepalign evaluate`: the paper's tables for a release, beside its peers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.errors import EXIT_FAILED, UsageError

PEERS = "ants-rigid,ants-syn,greedy-nmi,greedy-wncc"
ALL = "all"


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
    baselines: Annotated[str, typer.Option(help="Peers, separated by commas, or all.")] = PEERS,
    split: Annotated[SplitName, typer.Option(help="Which cases.")] = SplitName.TEST,
    ablate: Annotated[
        list[str],
        typer.Option(
            help="A further row, may be repeated: NAME=RELEASE, NAME=STAGE:FOLDER (that training's network in this "
            "release), a variant's name (no-inpainting, ants-planning …), or all for every variant."
        ),
    ] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 runs in this process.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute every case again, and compare.")] = False,
    inverse: Annotated[
        bool, typer.Option("--inverse/--no-inverse", help="Register both ways, for the inverse consistency.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every method; 1 makes every peer repeatable. [default: 2; 1 on Ray]")
    ] = None,
    seed: Annotated[int, typer.Option(help="For the peers that sample, and for untrained weights.")] = 0,
) -> Answer:
    """Evaluate a release on a cohort, against the peers; resumable per case."""
    from hepalign.cli.progress import Steps
    from hepalign.distributed.evaluation import evaluate_release
    from hepalign.evaluation.baselines import BASELINES
    from hepalign.evaluation.variants import VARIANTS

    others = dict(pair for word in ablate for pair in ([(v, v) for v in VARIANTS] if word == ALL else [_named(word)]))
    peers = list(BASELINES) if baselines == ALL else [name for name in baselines.split(",") if name]
    evaluation = evaluate_release(
        cohort, release, out, split=split.value, baselines=peers, ablate=others, workers=workers, fresh=fresh,
        both_ways=inverse, threads=threads, seed=seed, progress=Steps("evaluation"),
    )  # fmt: skip
    from hepalign.cli.table import render

    text = f"{render([readable(row) for row in evaluation.summary()])}\nreport in {out / 'report.html'}"
    failed = [f"{f.case}/{f.method}" for f in evaluation.failures()]
    facts = {"failed": failed, "skipped": evaluation.results["skipped"], "rerun": evaluation.results["rerun"]}
    status = EXIT_FAILED if failed else 0
    return Answer({"out": str(out), "table": evaluation.summary(), **facts}, text, status)


def readable(row: Mapping[str, object]) -> dict[str, object]:
    """A row of the summary with four digits a figure: the answer and the report's files have all of them."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def _named(word: str) -> tuple[str, str]:
    """NAME=WHAT; a word alone names a variant and its row."""
    name, equals, what = word.partition("=")
    if not name or (equals and not what):
        raise UsageError(f"--ablate takes NAME=RELEASE, NAME=STAGE:FOLDER or a variant, not {word!r}", code="usage")
    return name, what or name
