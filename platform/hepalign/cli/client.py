"""`hepalign client …`: the HTTP client; reads HEPALIGN_URL and HEPALIGN_TOKEN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing
from hepalign.cli.table import render
from hepalign.errors import UsageError

if TYPE_CHECKING:
    from hepalign_serve.client import Client

app = typer.Typer(help="Talk to a running service.", no_args_is_help=True)

CaseArgument = Annotated[str, typer.Argument(help="The case's id.")]
Url = Annotated[str | None, typer.Option(envvar="HEPALIGN_URL", help="The service.")]
Token = Annotated[str | None, typer.Option(envvar="HEPALIGN_TOKEN", help="The site's token.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the job.")]


def _client(url: str | None, token: str | None) -> Client:
    if not url or not token:
        raise UsageError("set HEPALIGN_URL and HEPALIGN_TOKEN (or --url and --token)", code="usage")
    from hepalign_serve.client import Client

    return Client(url, token)


@command(app, "cases")
def cases(url: Url = None, token: Token = None) -> Answer:
    """List the site's cases."""
    with _client(url, token) as client:
        rows = client.cases()
    return Answer({"cases": rows}, render(rows) if rows else "no cases")


@command(app, "plan")
def plan(
    pmr: Annotated[str, typer.Option(help="Pre-procedural MR.")],
    pct: Annotated[str, typer.Option(help="Pre-procedural CT.")],
    label: Annotated[list[str], typer.Option(help="ROLE-liver=FILE or ROLE-tumour=FILE.")] = [],  # noqa: B006
    wait_s: Wait = 300.0,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Open a case, send the pre-procedural images and plan."""
    images = {"pmr": existing(pmr), "pct": existing(pct)}
    for word in label:
        role, equals, file = word.partition("=")
        if not equals:
            raise UsageError(f"a label is ROLE-liver=FILE or ROLE-tumour=FILE, not {word!r}", code="usage")
        images[role] = existing(file)
    with _client(url, token) as client:
        case = client.open_case()
        for role, path in images.items():
            client.upload(case, role, path)
        job = client.plan(case, wait_s=wait_s)
    return Answer({"case": case, "job": job}, f"case {case}: plan {job['state']}")


@command(app, "guide")
def guide(
    case: CaseArgument,
    ict: Annotated[str, typer.Option(help="Intra-procedural CT.")],
    probe_mask: Annotated[str, typer.Option(help="NIfTI mask, or JSON box or polygon.")],
    out: Annotated[Path, typer.Option(help="The folder for the result's files.")],
    wait_s: Wait = 60.0,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Send an intra-procedural CT, guide and download the result."""
    with _client(url, token) as client:
        client.upload(case, "ict", existing(ict))
        client.upload(case, "ict-probe-mask", existing(probe_mask))
        job = client.guide(case, wait_s=wait_s)
        files = client.download(case, out, job=job)
    return Answer({"case": case, "job": job, "files": [f.name for f in files]}, f"{len(files)} files in {out}")


@command(app, "jobs")
def jobs(job: Annotated[str, typer.Argument(help="The job's id.")], url: Url = None, token: Token = None) -> Answer:
    """Show a job's state."""
    with _client(url, token) as client:
        found = client.job(job)
    return Answer(found, render([found]))


@command(app, "artifacts")
def artifacts(
    case: CaseArgument,
    out: Annotated[Path, typer.Option(help="Where the files go.")],
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Download a case's results."""
    with _client(url, token) as client:
        files = client.download(case, out)
    return Answer({"files": [f.name for f in files]}, f"{len(files)} files in {out}")
