"""`hepalign data …`: make, import and check cohorts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing, located, parse_labels, parse_role_files, parse_role_numbers, parse_shape
from hepalign.cli.progress import Steps
from hepalign.errors import EXIT_BAD_DATA

if TYPE_CHECKING:
    from hepalign.cases.check import Finding


class Orientation(StrEnum):
    """Which of a NIfTI header's two forms counts; `auto` refuses a header whose forms differ."""

    AUTO = "auto"
    SFORM = "sform"
    QFORM = "qform"


data_app = typer.Typer(help="Make, import and check cohorts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command tree."""
    app.add_typer(data_app, name="data")


Out = Annotated[str, typer.Option(help="The cohort: a folder or an s3:// prefix. A cohort that is there is extended.")]
Cases = Annotated[int, typer.Option(min=1, help="How many cases.")]
Seed = Annotated[int, typer.Option(help="The first case's seed; the same seed gives the same case.")]
Shape = Annotated[str, typer.Option(help="Voxels of the CT grid.")]
Spacing = Annotated[
    float | None, typer.Option(min=0.5, max=20.0, help="Isotropic spacing in mm; spans a field of view by default.")
]
ImportShape = Annotated[str, typer.Option("--shape", help="Voxels of the cohort's grid.")]
ImportSpacing = Annotated[
    float | None,
    typer.Option("--spacing", min=0.3, max=10.0, help="Isotropic spacing in mm; fits the body by default."),
]
HeaderForm = Annotated[Orientation, typer.Option("--orientation", help="Which form of a NIfTI header counts.")]
DropLocalizers = Annotated[bool, typer.Option("--drop-localizers", help="Leave localizers out.")]
ResampleTilt = Annotated[bool, typer.Option("--resample-tilt", help="Straighten a tilted gantry.")]
N4 = Annotated[bool, typer.Option("--n4", help="Take the coil's shading out of the pMR; it is kept as pmr_bias.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes side by side.")]


@command(data_app, "phantom")
def phantom(
    out: Out,
    cases: Cases = 10,
    seed: Seed = 0,
    shape: Shape = "128,128,96",
    spacing: Spacing = None,
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
    ct: Annotated[str, typer.Option(help="A real CT: NIfTI, DICOM folder or zip, or s3://.")],
    out: Out,
    liver: Annotated[str | None, typer.Option(help="The CT's liver mask: NIfTI or DICOM SEG.")] = None,
    tumour: Annotated[str | None, typer.Option(help="The CT's tumours, at which the probe aims.")] = None,
    cases: Cases = 10,
    seed: Seed = 0,
    phase: Annotated[bool, typer.Option("--phase", help="Give the iCT another contrast phase.")] = False,
    sliding: Annotated[bool, typer.Option("--sliding", help="Let the organs glide along the wall.")] = False,
    shape: Shape = "128,128,96",
    spacing: Spacing = None,
    patient: Annotated[
        str | None, typer.Option(help="A pseudonym for the CT's patient; made of its voxels by default.")
    ] = None,
    series: Annotated[int | None, typer.Option(min=1, help="Which of several DICOM series.")] = None,
    workers: Workers = 1,
) -> Answer:
    """Make pCT/iCT pairs with a known warp and a simulated probe from a real CT."""
    voxels = parse_shape(shape)
    from hepalign.cases.deidentify import check_pseudonyms
    from hepalign.cases.sources.generate import simulated_cohort
    from hepalign.cases.sources.scans import ImportSettings, read_label, read_scan

    warnings: list[str] = []
    scan = read_scan("ct", located(ct), ImportSettings(series={"ct": series} if series else {}), warnings)
    if scan.header is not None:
        check_pseudonyms([patient or ""], scan.header)
    simulated_cohort(
        out,
        ct=scan.volume,
        liver=read_label("ct_liver", located(liver), scan, warnings) if liver else None,
        tumour=read_label("ct_tumour", located(tumour), scan, warnings) if tumour else None,
        name=patient or f"ct-{hashlib.sha256(scan.volume.as_float().tobytes()).hexdigest()[:10]}",
        cases=cases,
        seed=seed,
        shape=voxels,
        spacing_mm=spacing,
        phase=phase,
        sliding=sliding,
        workers=workers,
        progress=Steps("simulate"),
    )
    found = {"cohort": out, "cases": cases, "warnings": warnings}
    return Answer(found, f"{cases} simulated pairs in {out}", warnings=warnings)


@command(data_app, "import")
def import_(
    out: Out,
    case: Annotated[str, typer.Option(help="A pseudonymous id for the case.")],
    pmr: Annotated[str | None, typer.Option(help="Pre-procedural MR.")] = None,
    pct: Annotated[str | None, typer.Option(help="Pre-procedural CT.")] = None,
    ict: Annotated[str | None, typer.Option(help="Intra-procedural CT.")] = None,
    probe_mask: Annotated[str | None, typer.Option(help="Coarse probe mask: NIfTI, or JSON box or polygon.")] = None,
    label: Annotated[
        list[str], typer.Option(help="ROLE:liver=FILE or ROLE:tumour=FILE (NIfTI or SEG); may be repeated.")
    ] = [],  # noqa: B006
    landmarks: Annotated[list[str], typer.Option(help="ROLE=CSV (name,x,y,z; mm, RAS); may be repeated.")] = [],  # noqa: B006
    patient: Annotated[str | None, typer.Option(help="A pseudonymous patient id; the case's id by default.")] = None,
    series: Annotated[list[str], typer.Option(help="ROLE=N: which of several DICOM series; may be repeated.")] = [],  # noqa: B006
    shape: ImportShape = "256,256,128",
    spacing: ImportSpacing = None,
    orientation: HeaderForm = Orientation.AUTO,
    drop_localizers: DropLocalizers = False,
    resample_tilt: ResampleTilt = False,
    n4: N4 = False,
) -> Answer:
    """Import one patient's images (NIfTI, DICOM folder, DICOM zip or s3://) into a cohort, de-identified."""
    voxels = parse_shape(shape)
    from hepalign.cases.sources.importing import import_case

    images = {role: path for role, path in (("pmr", pmr), ("pct", pct), ("ict", ict)) if path}
    imported = import_case(
        out,
        case,
        images=images,
        patient=patient,
        probe_mask=probe_mask,
        labels=parse_labels(label),
        landmarks=parse_role_files(landmarks),
        shape=voxels,
        spacing_mm=spacing,
        orientation=orientation.value,
        drop_localizers=drop_localizers,
        resample_tilt=resample_tilt,
        n4=n4,
        series=parse_role_numbers(series),
    )
    found = {"cohort": out, "case": case, "warnings": list(imported.warnings)}
    return Answer(found, f"{case} imported into {out}", warnings=imported.warnings)


@command(data_app, "import-table")
def import_table(
    table: Annotated[Path, typer.Argument(help="CSV, a row a case: case, patient, pmr, pct, ict, probe_mask …")],
    out: Out,
    shape: ImportShape = "256,256,128",
    spacing: ImportSpacing = None,
    orientation: HeaderForm = Orientation.AUTO,
    drop_localizers: DropLocalizers = False,
    resample_tilt: ResampleTilt = False,
    n4: N4 = False,
    seed: Annotated[int, typer.Option(help="Which of the possible splits.")] = 0,
) -> Answer:
    """Import many patients; a bad row is told and the others go on. A second run takes up the rest."""
    voxels = parse_shape(shape)
    from hepalign.cases.sources import table as tables
    from hepalign.cases.sources.scans import ImportSettings

    settings = ImportSettings(voxels, spacing, orientation.value, drop_localizers, resample_tilt, n4)
    done = tables.import_table(out, existing(table), settings=settings, seed=seed, progress=Steps("import"))
    text = f"{len(done.imported)} cases in {out}"
    warnings = [f"{case.case_id}: {said}" for case in done.imported for said in case.warnings]
    found = {"cohort": out, "cases": len(done.imported), "warnings": warnings}
    return _with_findings(found, done.findings, text, warnings)


@command(data_app, "check")
def check(
    cohort: Annotated[str, typer.Argument(help="A cohort's folder or s3:// prefix.")],
) -> Answer:
    """Validate every case; exit status 3 and a table when something is wrong."""
    from hepalign.cases.check import check_cohort

    return _with_findings({"cohort": cohort}, check_cohort(cohort), "every case is sound")


def _with_findings(
    data: dict[str, object], findings: Sequence[Finding], text: str, warnings: Sequence[str] = ()
) -> Answer:
    """The answer, with exit status 3 and a table where something is wrong."""
    rows = [{"case": f.case, "file": f.file, "code": f.code, "message": f.message} for f in findings]
    if not rows:
        return Answer({**data, "findings": []}, text, warnings=warnings)
    from hepalign.cli.table import render

    return Answer({**data, "findings": rows}, render(rows), exit_code=EXIT_BAD_DATA, warnings=warnings)
