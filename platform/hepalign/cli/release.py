"""`hepalign release …`: build, compare, promote and roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing
from hepalign.cli.table import render

app = typer.Typer(help="Build, compare, promote and roll back releases.", no_args_is_help=True)

ReleaseArgument = Annotated[str, typer.Argument(help="A folder, models:/hepalign@champion or a run's URI.")]
Training = Annotated[str, typer.Option(help="The training's folder, or its MLflow run: runs:/ID.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the history for good.")]


@command(app, "build")
def build(
    synthesis: Training,
    inpainting: Training,
    registration: Training,
    out: Annotated[Path, typer.Option(help="The release's folder.")],
    version: Annotated[str, typer.Option(help="The release's version.")] = "0",
) -> Answer:
    """Pin three trained networks as one release."""
    from hepalign.tracking.releases import build_release, fetch_training

    places = {"synthesis": synthesis, "inpainting": inpainting, "registration": registration}
    folders = {
        stage: fetch_training(place) if place.startswith("runs:/") else existing(place)
        for stage, place in places.items()
    }
    built = build_release(folders, out, version=version)
    return Answer({"out": str(built)}, f"release in {built}")


@command(app, "list")
def list_() -> Answer:
    """List the registered releases."""
    from hepalign.tracking.releases import list_releases

    rows = list_releases()
    return Answer({"releases": rows}, render(rows) if rows else "no release is registered yet")


@command(app, "show")
def show(release: ReleaseArgument) -> Answer:
    """Show a release's manifest and gate report."""
    from hepalign.tracking.releases import show_release
    from hepalign.tracking.runs import dotted

    found = show_release(release)
    gate = dict(found["gate"] or {})
    checks = gate.pop("checks", [])
    rows = [{"key": key, "value": value} for key, value in dotted(found | {"gate": gate}).items()]
    return Answer(found, "\n\n".join(render(table) for table in (rows, checks) if table))


@command(app, "diff")
def diff(first: ReleaseArgument, second: ReleaseArgument) -> Answer:
    """Show what differs between two releases."""
    from hepalign.tracking.releases import diff_releases

    rows = diff_releases(first, second)
    return Answer({"differences": rows}, render(rows) if rows else "the same")


@command(app, "promote")
def promote(
    release: ReleaseArgument,
    reason: Reason,
    report: Annotated[Path | None, typer.Option(help="The evaluation's folder that the gate judges.")] = None,
    policy: Annotated[Path, typer.Option(help="The gate's thresholds.")] = Path("mlflow/promotion.yaml"),
) -> Answer:
    """Put a release through the gate and make it the champion."""
    from hepalign.tracking.promotion import promote as run

    entry = run(release, evaluation=report, policy=existing(policy), reason=reason)
    return Answer(entry, f"champion is now version {entry['version']} (history entry {entry['entry']})")


@command(app, "rollback")
def rollback(reason: Reason) -> Answer:
    """Make the release before the champion the champion again."""
    from hepalign.tracking.promotion import rollback as run

    entry = run(reason=reason)
    return Answer(entry, f"champion is again version {entry['version']} (history entry {entry['entry']})")


@command(app, "history")
def history() -> Answer:
    """Who promoted what, when and why."""
    from hepalign.tracking.promotion import history as run

    rows = run()
    return Answer({"history": rows}, render(rows) if rows else "no promotion yet")
