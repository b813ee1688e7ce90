"""`hepalign sites | audit | relay`: what a hospital's operator does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import parse_role_files
from hepalign.cli.table import render
from hepalign.errors import EXIT_FAILED

sites_app = typer.Typer(help="The sites that may call the service, and their tokens.", no_args_is_help=True)
audit_app = typer.Typer(help="The tamper-evident audit.", no_args_is_help=True)
relay_app = typer.Typer(help="Between a PACS and the service.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option(help="The service's YAML; the embedded defaults without one.")]
Site = Annotated[str, typer.Argument(help="The site's name.")]


def register(app: typer.Typer) -> None:
    """Add the groups to the command tree."""
    app.add_typer(sites_app, name="sites")
    app.add_typer(audit_app, name="audit")
    app.add_typer(relay_app, name="relay")


@command(sites_app, "add")
def sites_add(site: Site, config: Config = None) -> Answer:
    """Add a site; its token is printed once."""
    from hepalign_serve.operators import add_site

    token = add_site(site, config)
    return Answer({"site": site, "token": token}, f"token of {site} (shown once): {token}")


@command(sites_app, "list")
def sites_list(config: Config = None) -> Answer:
    """List the sites and their keys' ids."""
    from hepalign_serve.operators import list_sites

    rows = list_sites(config)
    return Answer({"sites": rows}, render(rows) if rows else "no sites yet")


@command(sites_app, "rotate")
def sites_rotate(
    site: Site,
    overlap_h: Annotated[float, typer.Option(min=0, help="Hours for which the old token stays valid.")] = 24.0,
    config: Config = None,
) -> Answer:
    """Give a site a new token; the old one stays valid for a while."""
    from hepalign_serve.operators import rotate_site

    token = rotate_site(site, overlap_h, config)
    return Answer({"site": site, "token": token}, f"new token of {site} (shown once): {token}")


@command(sites_app, "revoke")
def sites_revoke(site: Site, config: Config = None) -> Answer:
    """Revoke a site's tokens at once."""
    from hepalign_serve.operators import revoke_site

    revoke_site(site, config)
    return Answer({"site": site, "revoked": True}, f"{site} is revoked")


@command(audit_app, "export")
def audit_export(
    out: Annotated[Path, typer.Option(help="The JSON-lines file to write.")], config: Config = None
) -> Answer:
    """Export the audit."""
    from hepalign_serve.operators import export_audit

    lines = export_audit(out, config)
    return Answer({"out": str(out), "lines": lines}, f"{lines} lines in {out}")


@command(audit_app, "verify")
def audit_verify(config: Config = None) -> Answer:
    """Verify the audit's hash chain against its anchor."""
    from hepalign_serve.operators import verify_audit

    problem = verify_audit(config)
    if problem:
        return Answer({"intact": False, "problem": problem}, f"the audit is broken: {problem}", EXIT_FAILED)
    return Answer({"intact": True}, "the audit is intact")


@command(relay_app, "list")
def relay_list(orthanc: Annotated[str, typer.Option(help="Orthanc's address.")]) -> Answer:
    """List an Orthanc's series, for their ids; nothing of the patient is shown."""
    from hepalign_serve.relay import Orthanc

    with Orthanc(orthanc) as store:
        rows = store.list_series()
    return Answer({"series": rows}, render(rows) if rows else "no series there")


@command(relay_app, "orthanc")
def relay_orthanc(
    orthanc: Annotated[str, typer.Option(help="Orthanc's address.")],
    case: Annotated[str | None, typer.Option(help="The case; a new one by default.")] = None,
    series: Annotated[list[str], typer.Option(help="ROLE=SERIES, Orthanc's id; may be repeated.")] = [],  # noqa: B006
    artifact: Annotated[list[str], typer.Option(help="An artifact to store in Orthanc as DICOM.")] = [],  # noqa: B006
    url: Annotated[str | None, typer.Option(envvar="HEPALIGN_URL", help="The service.")] = None,
    token: Annotated[str | None, typer.Option(envvar="HEPALIGN_TOKEN", help="The site's token.")] = None,
) -> Answer:
    """Bring series of an Orthanc into a case, and store results in it."""
    wanted = parse_role_files(series)
    from hepalign_serve.client import Client
    from hepalign_serve.relay import Orthanc, return_artifacts, send_series

    with Orthanc(orthanc) as store, Client(url, token) as client:
        found = case or client.open_case()
        send_series(store, client, found, wanted)
        sent = return_artifacts(store, client, found, artifact)
    instances = sum(sent.values())
    text = f"case {found}: {len(wanted)} series in, {instances} instances back"
    content = {"case": found, "series": sorted(wanted), "instances": instances, "studies": sent}
    return Answer(content, text)
