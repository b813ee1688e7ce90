"""`hepalign train` and `hepalign tune`: the same functions that Ray jobs call."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing


class StageName(StrEnum):
    """The three trainings."""

    SYNTHESIS = "synthesis"
    INPAINTING = "inpainting"
    REGISTRATION = "registration"


StageArgument = Annotated[StageName, typer.Argument(help="What to train.")]
Config = Annotated[str, typer.Option(help="A YAML file such as jobs/configs/inpainting.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings over the YAML, such as losses.style=60.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last good checkpoint of the same name.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    command(app, "train")(train)
    command(app, "tune")(tune)


def train(stage: StageArgument, config: Config, overrides: Overrides = None, resume: Resume = False) -> Answer:
    """Train one stage, on this machine or on the Ray cluster of RAY_ADDRESS."""
    path = existing(config)
    from hepalign.config import load_config
    from hepalign.distributed.workers import train as run

    result = run(load_config(stage.value, path, overrides or []), resume=resume)
    data = {"stage": stage.value, "folder": str(result.folder), "metrics": result.metrics, "run_id": result.run_id}
    best = ", ".join(f"{name} {value:.4g}" for name, value in sorted(result.metrics.items()))
    return Answer(data, f"{stage.value} trained: {best}\nweights in {result.folder}")


def tune(stage: StageArgument, config: Config, overrides: Overrides = None, resume: Resume = False) -> Answer:
    """Search a stage's settings with Ray Tune; writes the winner as a YAML that trains at once."""
    path = existing(config)
    from hepalign.config import load_config
    from hepalign.distributed.tuning import tune as run

    result = run(load_config(stage.value, path, overrides or []), resume=resume)
    data = {"stage": stage.value, "folder": str(result.folder), "best": result.best, "score": result.score}
    return Answer(data, f"best {result.score:.4g} with {result.best}\nconfig in {result.config}")
