"""`hepalign client …`: the HTTP client; reads HEPALIGN_URL and HEPALIGN_TOKEN."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing
from hepalign.cli.table import render
from hepalign.errors import UsageError

if TYPE_CHECKING:
    from hepalign_serve.client import Client

app = typer.Typer(help="Talk to a running service.", no_args_is_help=True)

CaseArgument = Annotated[str, typer.Argument(help="The case's id.")]
Out = Annotated[Path, typer.Option(help="The folder for the files.")]
Url = Annotated[str | None, typer.Option(envvar="HEPALIGN_URL", help="The service.")]
Token = Annotated[str | None, typer.Option(envvar="HEPALIGN_TOKEN", help="The site's token.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the job.")]


def _client(url: str | None, token: str | None) -> Client:
    if not url or not token:
        raise UsageError("set HEPALIGN_URL and HEPALIGN_TOKEN (or --url and --token)", code="usage")
    from hepalign_serve.client import Client

    return Client(url, token)


@command(app, "cases")
def cases(
    case: Annotated[str | None, typer.Argument(help="One case, in full.")] = None,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """List the site's cases, or show one."""
    with _client(url, token) as client:
        if case is not None:
            found = client.case(case)
            rows = [{"role": image["role"], "shape": image["shape"]} for image in found["images"]]
            jobs = [{"job": job["id"], "kind": job["kind"], "state": job["state"]} for job in found["jobs"]]
            return Answer(found, "\n\n".join(render(part) for part in (rows, jobs) if part) or "an empty case")
        listed = client.cases()
    return Answer({"cases": listed}, render(listed) if listed else "no cases")


@command(app, "upload")
def upload(
    images: Annotated[list[str], typer.Argument(help="ROLE=FILE: NIfTI, DICOM folder or zip, or a JSON probe mask.")],
    case: Annotated[str | None, typer.Option(help="The case; a new one by default.")] = None,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Send images; one that broke off goes on where it was."""
    wanted = _role_files(images)
    with _client(url, token) as client:
        found = case or client.open_case()
        views = [_send(client, found, role, path) for role, path in wanted.items()]
    text = f"case {found}: {', '.join(wanted)} sent"
    return Answer({"case": found, "images": views}, text, warnings=_warnings(*views))


@command(app, "plan")
def plan(
    pmr: Annotated[str | None, typer.Option(help="Pre-procedural MR.")] = None,
    pct: Annotated[str | None, typer.Option(help="Pre-procedural CT.")] = None,
    label: Annotated[list[str], typer.Option(help="ROLE-liver=FILE or ROLE-tumour=FILE.")] = [],  # noqa: B006
    case: Annotated[str | None, typer.Option(help="A case that has its images; a new one by default.")] = None,
    wait_s: Wait = 300.0,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Open a case, send the pre-procedural images and plan."""
    if case is None and not (pmr and pct):
        raise UsageError("give --pmr and --pct, or --case with images that are there", code="usage")
    images = {role: existing(path) for role, path in (("pmr", pmr), ("pct", pct)) if path}
    images |= _role_files(label)
    with _client(url, token) as client:
        found = case or client.open_case()
        sent = [_send(client, found, role, path) for role, path in images.items()]
        job = _finish(client, client.plan(found), wait_s)
    text = f"case {found}: plan {job['state']}{_verdict(job)}"
    return Answer({"case": found, "job": job}, text, warnings=_warnings(*sent, job["result"]))


@command(app, "guide")
def guide(
    case: CaseArgument,
    out: Out,
    ict: Annotated[str | None, typer.Option(help="Intra-procedural CT; the case's newest by default.")] = None,
    probe_mask: Annotated[str | None, typer.Option(help="NIfTI mask, or JSON box or polygon.")] = None,
    wait_s: Wait = 120.0,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Send an intra-procedural CT, guide and download the result."""
    images = {role: existing(path) for role, path in (("ict", ict), ("ict-probe-mask", probe_mask)) if path}
    with _client(url, token) as client:
        sent = [_send(client, case, role, path) for role, path in images.items()]
        job = _finish(client, client.guide(case), wait_s)
        files = client.download(case, out, job=job) if job["state"] == "succeeded" else []
    answer = {"case": case, "job": job, "files": [file.name for file in files]}
    text = f"guide {job['state']}{_verdict(job)}; {len(files)} files in {out}"
    return Answer(answer, text, warnings=_warnings(*sent, job["result"]))


@command(app, "jobs")
def jobs(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    wait_s: Wait = 0.0,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Show a job's state, or wait for its end."""
    with _client(url, token) as client:
        found = _finish(client, client.job(job), wait_s)
    row = {name: found[name] for name in ("id", "kind", "state", "step", "progress", "queue_position", "eta_s")}
    return Answer(found, render([row]) + _verdict(found), warnings=_warnings(found["result"]))


@command(app, "artifacts")
def artifacts(
    case: CaseArgument,
    out: Out,
    name: Annotated[list[str], typer.Option(help="Only this one; may be repeated.")] = [],  # noqa: B006
    dicom: Annotated[bool, typer.Option("--dicom", help="As zips of DICOM files, for a PACS.")] = False,
    url: Url = None,
    token: Token = None,
) -> Answer:
    """Download a case's results."""
    with _client(url, token) as client:
        if name or dicom:
            save = client.dicom_zip if dicom else client.artifact
            files = [save(case, one, out) for one in name or client.case(case)["artifacts"]]
        else:
            files = client.download(case, out)
    return Answer({"files": [file.name for file in files]}, f"{len(files)} files in {out}")


@command(app, "erase")
def erase(case: CaseArgument, url: Url = None, token: Token = None) -> Answer:
    """Erase a case with all its images and results."""
    with _client(url, token) as client:
        client.erase(case)
    return Answer({"case": case, "erased": True}, f"case {case} is erased")


def _role_files(words: list[str]) -> dict[str, Path]:
    images = {}
    for word in words:
        role, equals, file = word.partition("=")
        if not (role and equals and file):
            raise UsageError(f"an image is ROLE=FILE, such as pct-liver=liver.nii.gz, not {word!r}", code="usage")
        images[role] = existing(file)
    return images


def _send(client: Client, case: str, role: str, path: Path) -> dict[str, Any]:
    return client.upload(case, role, path, progress=_bar(role))


def _finish(client: Client, job: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """The job at its end, or as it stands when the time is over; its steps are told on the way."""
    if wait_s <= 0 or job["state"] == "succeeded":
        return job
    from hepalign.errors import WorkFailedError

    try:
        return client.wait(job["id"], timeout_s=wait_s, progress=_steps())
    except WorkFailedError:
        return client.job(job["id"])


def _verdict(job: Mapping[str, Any]) -> str:
    quality = (job["result"] or {}).get("quality", {})
    reasons = "; ".join(quality.get("reasons", []))
    return "" if "status" not in quality else f", {quality['status'].upper()}" + (f" ({reasons})" if reasons else "")


def _warnings(*told: Mapping[str, Any] | None) -> list[str]:
    """What images and results say of themselves; a guide repeats what was found as its iCT came in."""
    return [*dict.fromkeys(said for part in told for said in (part or {}).get("warnings", []))]


def _bar(role: str) -> Callable[[int, int], None]:
    def told(sent: int, total: int) -> None:
        ending = "\r" if sys.stderr.isatty() and sent < total else "\n"
        if sys.stderr.isatty() or sent == total:
            print(f"{role}: {sent / 2**20:.1f} of {total / 2**20:.1f} MiB", end=ending, file=sys.stderr, flush=True)

    return told


def _steps() -> Callable[[Mapping[str, Any]], None]:
    last = ""

    def told(job: Mapping[str, Any]) -> None:
        nonlocal last
        eta = f", about {job['eta_s']:.0f} s" if job.get("eta_s") else ""
        line = f"waiting, {job['queue_position']} before" if job["state"] == "queued" else job["step"]
        if line != last:
            last = line
            print(f"{job['kind']}: {line}{eta}", file=sys.stderr, flush=True)

    return told
