"""One decorator that gives every command `--json`, `--debug`, one-line errors and exit codes.

A command returns an `Answer`; whatever libraries print to stdout meanwhile goes to stderr, so that
`--json` leaves exactly one JSON object on stdout.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import typer

from hepalign.errors import EXIT_FAILED, HepalignError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Answer:
    """What a command found: `data` for `--json`, `text` and `warnings` for people, and the process's exit status."""

    data: Mapping[str, object]
    text: str = ""
    exit_code: int = field(default=0)
    warnings: Sequence[str] = ()


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Answer]], Callable[..., None]]:
    """Register a function that returns an `Answer` as a command of `app`."""

    def register(function: Callable[..., Answer]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*args: object, as_json: bool = False, debug: bool = False, **kwargs: object) -> None:
            raise typer.Exit(_run(functools.partial(function, *args, **kwargs), as_json=as_json, debug=debug))

        signature = inspect.signature(function, eval_str=True)
        flags = [
            inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag),
            inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugFlag),
        ]
        parameters = [*signature.parameters.values(), *flags]
        call.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(call)
        return call

    return register


def _run(work: Callable[[], Answer], *, as_json: bool, debug: bool) -> int:
    """Do the work with stdout kept clean; returns the exit status."""
    with _stdout_kept() as stdout, warnings.catch_warnings():
        if not debug:
            # libraries quote what they warn of: paths of ours, values of a DICOM header
            warnings.simplefilter("ignore")
        try:
            answer = work()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            return _report(
                "interrupted", "stopped by the keyboard; run the same command again to go on", 130, stdout, as_json
            )
        except HepalignError as error:
            if debug:
                traceback.print_exc()
            return _report(error.code, error.message, error.exit_code, stdout, as_json)
        except Exception as error:  # noqa: BLE001 - the border: never a traceback unless asked for
            if debug:
                traceback.print_exc()
            message = f"{type(error).__name__}; run again with --debug for the traceback"
            return _report("internal", message, EXIT_FAILED, stdout, as_json)
        if as_json:
            print(json.dumps(answer.data, default=str), file=stdout)
            return answer.exit_code
        for said in answer.warnings:
            print(f"warning: {said}", file=sys.stderr)
        if answer.text:
            print(answer.text, file=stdout)
        return answer.exit_code


def _report(code: str, message: str, status: int, stdout: TextIO, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"error[{code}]: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"code": code, "message": line}}), file=stdout)
    return status


@contextlib.contextmanager
def _stdout_kept() -> Iterator[TextIO]:
    """The real stdout; file descriptor 1 (which C libraries write to as well) points to stderr meanwhile."""
    sys.stdout.flush()
    try:
        kept_descriptor = os.dup(1)
    except OSError:
        # stdout is closed, or a test runner's buffer without a descriptor
        yield sys.stdout
        return
    with os.fdopen(kept_descriptor, "w", encoding="utf-8") as kept, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        try:
            yield kept
        finally:
            kept.flush()
            os.dup2(kept.fileno(), 1)
