"""`hepalign serve`: the service on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    command(app, "serve")(serve)


def serve(
    release: Annotated[str | None, typer.Option(help="A folder, models:/hepalign@champion or a run's URI.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML such as serve/config/hospital.yaml.")] = None,
) -> Answer:
    """Serve a release until interrupted; prints the viewer's address and a token."""
    from hepalign_serve.run import serve_forever

    serve_forever(release=release, config=existing(config) if config else None)
    return Answer({"stopped": True}, "stopped")
