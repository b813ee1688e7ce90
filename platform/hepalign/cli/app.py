"""The command tree and its usage errors."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

# typer carries its own copy of click and names these two nowhere else
from typer._click.exceptions import ClickException, NoArgsIsHelpError, UsageError

from hepalign import __version__
from hepalign.cli import client, data, demo, doctor, evaluate, inference, operators, release, serve, train
from hepalign.errors import EXIT_USAGE

app = typer.Typer(
    name="hepalign",
    help="MR-CT registration for image-guided thermal ablation of liver tumours. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    pass


for module in (data, train, evaluate, inference, serve, demo, doctor):
    module.register(app)
app.add_typer(release.app, name="release")
app.add_typer(client.app, name="client")
operators.register(app)


def run(arguments: list[str] | None = None) -> None:
    """Parse and run; a call whose words are off ends with status 2 and one line."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except ClickException as error:
        where = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, UsageError) and error.ctx else ""
        message = " ".join(error.format_message().split()) + where
        print(f"error[usage]: {message}", file=sys.stderr)
        if "--json" in (sys.argv if arguments is None else arguments):
            print(json.dumps({"error": {"code": "usage", "message": message}}))
        sys.exit(EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status or 0)
