"""`hepalign demo`: the main job end to end, by the functions behind the other commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command


class Size(StrEnum):
    """How much: `full` is a quarter of an hour on two cores, `smoke` a few minutes through the same code."""

    FULL = "full"
    SMOKE = "smoke"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    command(app, "demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The demo's folder; an interrupted demo goes on in it.")] = Path("demo"),
    size: Annotated[Size, typer.Option(help="full or smoke.")] = Size.FULL,
) -> Answer:
    """Make a cohort, train, release, promote, serve, call over HTTP and report; resumable."""
    from hepalign.cli.demo.journey import Journey

    summary = Journey(out, size.value).run()
    lines = [f"{name}: {value}" for name, value in summary["figures"].items()]
    return Answer(summary, "\n".join([*lines, f"report in {out / 'report.html'}, picture in {out / 'overview.png'}"]))
