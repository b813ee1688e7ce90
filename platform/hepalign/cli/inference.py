"""`hepalign plan | guide | synthesise | inpaint | register | points`: the chain on files, without a server."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hepalign.cli.command import Answer, command
from hepalign.cli.parsing import existing, located, parse_labels
from hepalign.errors import BadInputError

if TYPE_CHECKING:
    from hepalign.image.volume import Volume
    from hepalign.inference.bundle import Bundle


class PlanEngine(StrEnum):
    """How the MR (`ants`: its synthetic CT) is registered to the pre-procedural CT."""

    ANTS = "ants"
    LEARNED = "learned"
    LEARNED_REFINE = "learned+refine"


class GuideEngine(StrEnum):
    """How the pre-procedural CT is registered to the intra-procedural one."""

    FAST = "fast"
    REFINE = "refine"


Release = Annotated[str | None, typer.Option(help="A folder, models:/hepalign@champion or a run's URI.")]
OutFolder = Annotated[Path, typer.Option(help="The folder to write.")]
Labels = Annotated[list[str], typer.Option(help="ROLE:liver=FILE or ROLE:tumour=FILE; may be repeated.")]
ProbeMask = Annotated[str, typer.Option(help="NIfTI mask, JSON box or polygon, or `auto`.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    commands: dict[str, Callable[..., Answer]] = {
        "plan": plan, "guide": guide, "synthesise": synthesise, "inpaint": inpaint, "register": register_pair,
        "points": points,
    }  # fmt: skip
    for name, function in commands.items():
        command(app, name)(function)


def plan(
    pmr: Annotated[str, typer.Option(help="Pre-procedural MR.")],
    pct: Annotated[str, typer.Option(help="Pre-procedural CT.")],
    out: OutFolder,
    label: Labels = [],  # noqa: B006
    release: Release = None,
    engine: PlanEngine = PlanEngine.LEARNED_REFINE,
) -> Answer:
    """Before the procedure: the MR registered to the pre-procedural CT, and a synthetic CT made from it."""
    warnings: list[str] = []
    places = parse_labels(label)
    if any(name.startswith("ict") for name in places):
        raise BadInputError("a plan has no iCT; its labels are of pmr and pct", code="unknown_label")
    from hepalign.inference import planner

    images = {"pmr": _read(pmr, warnings, "mr"), "pct": _read(pct, warnings, "ct")}
    labels = {name: _label(place, images[name[:3]], warnings) for name, place in places.items()}
    made = planner.plan(_bundle(release), images["pmr"], images["pct"], labels=labels, engine=engine.value)
    made.save(out)
    warnings += made.warnings
    return Answer({"out": str(out), **made.summary(), "warnings": warnings}, f"plan in {out}", warnings=warnings)


def guide(
    plan: Annotated[Path, typer.Option(help="The plan's folder.")],
    ict: Annotated[str, typer.Option(help="Intra-procedural CT.")],
    probe_mask: ProbeMask,
    out: OutFolder,
    release: Release = None,
    engine: GuideEngine = GuideEngine.REFINE,
    previous: Annotated[Path | None, typer.Option(help="The result of the last iCT, to start from.")] = None,
    budget_s: Annotated[float | None, typer.Option(min=1.0, help="Seconds to spend at most.")] = None,
) -> Answer:
    """During the procedure: the plan's MR, CT and labels where the needle is."""
    warnings: list[str] = []
    from hepalign.inference import guide as guiding
    from hepalign.inference.planner import load_plan
    from hepalign.inference.result import load_previous

    ict_volume = _read(ict, warnings, "ct")
    bundle, planned = _bundle(release), load_plan(existing(plan))
    mask = _probe_mask(probe_mask, ict_volume, warnings)
    before = load_previous(existing(previous), planned, report=warnings) if previous else None
    result = guiding.guide(bundle, planned, ict_volume, mask, engine=engine.value, previous=before, budget_s=budget_s)
    # only now: a guide that is refused leaves what an earlier one wrote there
    result.save(out)
    reasons = [str(reason) for reason in cast("list[object]", result.quality["reasons"])]
    verdict = ": ".join([str(result.quality["status"]).upper(), *(["; ".join(reasons)] if reasons else [])])
    text = f"{verdict}\nresult in {out}"
    answer = {"out": str(out), **result.summary(), "read_warnings": warnings}
    return Answer(answer, text, warnings=[*warnings, *result.warnings])


def synthesise(
    pmr: Annotated[str, typer.Option("--in", help="The MR.")],
    out: Annotated[Path, typer.Option(help="The synthetic CT, .nii.gz.")],
    release: Release = None,
) -> Answer:
    """MR to synthetic CT (HU), on the MR's grid."""
    warnings: list[str] = []
    from hepalign.image.nifti import write_nifti
    from hepalign.inference.synthesise import synthesise as run

    write_nifti(run(_bundle(release), _read(pmr, warnings, "mr")), out)
    text = f"synthetic CT in {out} (synthetic; research use only)"
    return Answer({"out": str(out), "warnings": warnings}, text, warnings=warnings)


def inpaint(
    ict: Annotated[str, typer.Option("--in", help="The intra-procedural CT.")],
    probe_mask: ProbeMask,
    out: Annotated[Path, typer.Option(help="The inpainted CT, .nii.gz.")],
    prior: Annotated[str | None, typer.Option(help="The pre-procedural CT, roughly in place.")] = None,
    release: Release = None,
) -> Answer:
    """Inpaint the probe and its artefact out of a CT."""
    warnings: list[str] = []
    from hepalign.image.nifti import write_nifti
    from hepalign.image.resample import resample
    from hepalign.inference.inpaint import inpaint as run

    image = _read(ict, warnings, "ct")
    hint = resample(_read(prior, warnings, "ct"), image.geometry) if prior else None
    made = run(_bundle(release), image, _probe_mask(probe_mask, image, warnings), hint)
    write_nifti(made.image, out)
    warnings += made.warnings
    text = f"inpainted CT in {out} (synthetic inside the mask)"
    return Answer({"out": str(out), "warnings": warnings}, text, warnings=warnings)


def register_pair(
    moving: Annotated[str, typer.Option(help="The CT that moves.")],
    fixed: Annotated[str, typer.Option(help="The CT that stays.")],
    out: OutFolder,
    probe_mask: Annotated[str | None, typer.Option(help="Probe mask on the fixed CT, or `auto`.")] = None,
    moving_label: Annotated[str | None, typer.Option(help="A label map to carry along.")] = None,
    engine: GuideEngine = GuideEngine.REFINE,
    release: Release = None,
) -> Answer:
    """Register CT to CT without a plan."""
    warnings: list[str] = []
    from hepalign.inference.register import register as run

    fixed_volume, moving_volume = _read(fixed, warnings, "ct"), _read(moving, warnings, "ct")
    registration = run(
        _bundle(release),
        moving_volume,
        fixed_volume,
        engine=engine.value,
        probe_mask=_probe_mask(probe_mask, fixed_volume, warnings) if probe_mask else None,
        moving_label=_label(moving_label, moving_volume, warnings) if moving_label else None,
    )
    registration.save(out)
    answer = {"out": str(out), **registration.summary(), "read_warnings": warnings}
    return Answer(answer, f"field in {out}", warnings=[*warnings, *registration.warnings])


def points(
    field: Annotated[Path, typer.Option(help="A displacement field, .nii.gz or .h5.")],
    points: Annotated[Path, typer.Option(help="CSV: name,x,y,z or x,y,z; mm, RAS, in the fixed image.")],
    out: Annotated[Path, typer.Option(help="The mapped points, CSV.")],
) -> Answer:
    """Map fixed-image points into the moving image."""
    from hepalign.cases.landmarks import Landmarks, read_landmarks, write_landmarks
    from hepalign.transform.displacement import transform_points
    from hepalign.transform.files import read_field

    found = read_landmarks(existing(points), unnamed=True)
    mapped = Landmarks(found.names, transform_points(read_field(existing(field)), found.points_mm))
    write_landmarks(mapped, out)
    return Answer({"out": str(out), "points": len(found.names)}, f"{len(found.names)} points in {out}")


def _bundle(release: str | None) -> Bundle:
    from hepalign.inference.bundle import load_bundle
    from hepalign.tracking.resolution import resolve_release

    return load_bundle(resolve_release(release))


def _read(place: str, warnings: list[str], modality: str | None = None) -> Volume:
    """Read an image; with a modality its content is checked too (an MR sent as CT is refused)."""
    from hepalign.cases.sources.locations import local_copy
    from hepalign.image.checks import check_ct, check_mr
    from hepalign.image.read import read_volume

    name = Path(place).name
    with local_copy(located(place), name=name) as path:
        volume = read_volume(path, name=name, report=warnings)
    if modality == "ct":
        check_ct(volume, name, warnings)
    elif modality == "mr":
        check_mr(volume, name)
    return volume


def _label(place: str, image: Volume, warnings: list[str]) -> Volume:
    """Read a label map onto the grid of the image that it was drawn on (faults 35 and 36)."""
    from hepalign.cases.labels import label_onto

    return label_onto(_read(place, warnings), image, name=Path(place).name, report=warnings)


def _probe_mask(word: str, ict: Volume, warnings: list[str]) -> Volume:
    from hepalign.cases.probe import read_probe_mask
    from hepalign.cases.probe_search import find_probe
    from hepalign.cases.sources.locations import local_copy
    from hepalign.image.intensity import coarse_body_mask

    if word == "auto":
        return find_probe(ict, warnings)
    name = Path(word).name
    with local_copy(located(word), name=name) as path:
        return read_probe_mask(path, ict.geometry, coarse_body_mask(ict), report=warnings, name=name)
