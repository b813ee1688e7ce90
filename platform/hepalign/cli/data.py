"""`hepalign data …`: make, import and check cohorts."""

from __future__ import annotations

from typing import Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing, parse_labels, parse_role_files, parse_shape
from hepalign.cli.progress import Steps

data_app = typer.Typer(help="Make, import and check cohorts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command tree."""
    app.add_typer(data_app, name="data")


Out = Annotated[str, typer.Option(help="The cohort: a folder or an s3:// prefix. A cohort that is there is extended.")]
Cases = Annotated[int, typer.Option(min=1, help="How many cases.")]
Seed = Annotated[int, typer.Option(help="The first case's seed; the same seed gives the same case.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes side by side.")]


@command(data_app, "phantom")
def phantom(
    out: Out,
    cases: Cases = 10,
    seed: Seed = 0,
    shape: Annotated[str, typer.Option(help="Voxels of the CT grid.")] = "128,128,96",
    spacing: Annotated[float, typer.Option(min=0.5, max=10.0, help="Isotropic spacing in mm.")] = 2.8,
    randomised: Annotated[bool, typer.Option("--randomised", help="Random intensities per organ.")] = False,
    workers: Workers = 1,
) -> Answer:
    """Make phantom triplets (pMR, pCT, iCT) with exact truth."""
    voxels = parse_shape(shape)
    from hepalign.cases.sources.generate import phantom_cohort

    phantom_cohort(
        out, cases=cases, seed=seed, shape=voxels, spacing_mm=spacing, randomised=randomised, workers=workers,
        progress=Steps("phantom"),
    )  # fmt: skip
    return Answer({"cohort": out, "cases": cases}, f"{cases} phantom cases in {out}")


@command(data_app, "simulate")
def simulate(
    ct: Annotated[str, typer.Option(help="A real CT: NIfTI, DICOM folder or zip.")],
    out: Out,
    liver: Annotated[str | None, typer.Option(help="The CT's liver mask.")] = None,
    cases: Cases = 10,
    seed: Seed = 0,
    phase: Annotated[bool, typer.Option("--phase", help="Give the iCT another contrast phase.")] = False,
    workers: Workers = 1,
) -> Answer:
    """Make pCT/iCT pairs with a known warp and a simulated probe from a real CT."""
    ct_path = existing(ct)
    from hepalign.cases.sources.generate import simulated_cohort
    from hepalign.image.read import read_volume

    simulated_cohort(
        out,
        ct=read_volume(ct_path),
        liver=read_volume(existing(liver)) if liver else None,
        name="simulated",
        cases=cases,
        seed=seed,
        phase=phase,
        workers=workers,
        progress=Steps("simulate"),
    )
    return Answer({"cohort": out, "cases": cases}, f"{cases} simulated pairs in {out}")


@command(data_app, "import")
def import_(
    out: Out,
    case: Annotated[str, typer.Option(help="A pseudonymous id for the case.")],
    pmr: Annotated[str | None, typer.Option(help="Pre-procedural MR.")] = None,
    pct: Annotated[str | None, typer.Option(help="Pre-procedural CT.")] = None,
    ict: Annotated[str | None, typer.Option(help="Intra-procedural CT.")] = None,
    probe_mask: Annotated[str | None, typer.Option(help="Coarse probe mask: NIfTI, or JSON box or polygon.")] = None,
    label: Annotated[list[str], typer.Option(help="ROLE:liver=FILE or ROLE:tumour=FILE; may be repeated.")] = [],  # noqa: B006
    landmarks: Annotated[list[str], typer.Option(help="ROLE=CSV (name,x,y,z; mm, RAS); may be repeated.")] = [],  # noqa: B006
    patient: Annotated[str | None, typer.Option(help="A pseudonymous patient id; the case's id by default.")] = None,
    shape: Annotated[str, typer.Option(help="Voxels of the cohort's grid.")] = "256,256,128",
    spacing: Annotated[float | None, typer.Option(help="Isotropic spacing in mm; fits the body by default.")] = None,
) -> Answer:
    """Import one patient's images (NIfTI, DICOM folder, DICOM zip or s3://) into a cohort, de-identified."""
    voxels = parse_shape(shape)
    from hepalign.cases.sources.importing import import_case

    images = {role: path for role, path in (("pmr", pmr), ("pct", pct), ("ict", ict)) if path}
    imported = import_case(
        out, case, images=images, patient=patient or case, probe_mask=probe_mask, labels=parse_labels(label),
        landmarks=parse_role_files(landmarks), shape=voxels, spacing_mm=spacing,
    )  # fmt: skip
    warnings = list(imported.warnings)
    text = "\n".join([f"{case} imported into {out}", *(f"warning: {w}" for w in warnings)])
    return Answer({"cohort": out, "case": case, "warnings": warnings}, text)


@command(data_app, "check")
def check(
    cohort: Annotated[str, typer.Argument(help="A cohort's folder or s3:// prefix.")],
) -> Answer:
    """Validate every case; exit status 3 and a table when something is wrong."""
    from hepalign.cases.check import check_cohort
    from hepalign.errors import EXIT_BAD_DATA

    findings = check_cohort(cohort)
    rows = [{"case": f.case, "file": f.file, "code": f.code, "message": f.message} for f in findings]
    if not rows:
        return Answer({"cohort": cohort, "findings": []}, "every case is sound")
    from hepalign.cli.table import render

    return Answer({"cohort": cohort, "findings": rows}, render(rows), exit_code=EXIT_BAD_DATA)
