"""Before the procedure: the pMR registered to the pCT, and the synthetic CT that it would look like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from hepalign.errors import BadInputError, UsageError
from hepalign.image.intensity import as_stored_ct
from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.labels import LABEL_NAMES, checked_labels
from hepalign.inference.provenance import CONVENTION, field_digest, provenance, volume_digest
from hepalign.inference.register import Clock, register
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import read_field, write_field
from hepalign.transform.warp import warp

PlanEngine = Literal["ants", "learned", "learned+refine"]
ENGINES = ("ants", "learned", "learned+refine")
Progress = Callable[[str, float], None]
PLAN_SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """A patient's plan; self-contained.

    Args:
        pmr: the pre-procedural MR.
        pct: the pre-procedural CT, HU.
        sct: the synthetic CT, HU, on the pMR's grid.
        field_pct_from_pmr: on the pCT's grid, maps its points into the pMR.
        labels: by name (`pmr_liver`, `pmr_tumour`, `pct_liver`, `pct_tumour`), on their own image's grid.
        engine: what registered them.
        quality: CONTRACT's `quality` object of that registration.
        provenance: release, digests, code version.
        timings: seconds by step.
        warnings: what its reader should know.
    """

    pmr: Volume
    pct: Volume
    sct: Volume
    field_pct_from_pmr: DisplacementField
    labels: Mapping[str, Volume]
    engine: str
    quality: Mapping[str, object]
    provenance: Mapping[str, object]
    timings: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels and field: what a guide result pins."""
        parts = [volume_digest(self.pmr), volume_digest(self.pct), field_digest(self.field_pct_from_pmr)]
        parts += [f"{name}={volume_digest(volume)}" for name, volume in sorted(self.labels.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def summary(self) -> dict[str, object]:
        """The content of `plan.json`."""
        return {
            "schema": PLAN_SCHEMA,
            **self.provenance,
            "engine": self.engine,
            "quality": dict(self.quality),
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "plan_digest": self.digest,
            "labels": sorted(self.labels),
            "convention": CONVENTION,
            "warnings": list(self.warnings),
        }

    def save(self, folder: Path) -> Path:
        """Write CONTRACT's files; plan.json comes last, so that a folder with it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").unlink(missing_ok=True)
        write_nifti(self.pmr, folder / "pmr.nii.gz")
        write_nifti(self.pct, folder / "pct.nii.gz")
        write_nifti(as_stored_ct(self.sct), folder / "sct.nii.gz")
        write_nifti(warp(self.pmr, self.field_pct_from_pmr), folder / "pmr_on_pct.nii.gz")
        write_field(self.field_pct_from_pmr, folder / "field_pct_from_pmr.nii.gz")
        for name in LABEL_NAMES:
            path = folder / f"{name}.nii.gz"
            path.unlink(missing_ok=True)
            if name in self.labels:
                write_nifti(self.labels[name], path)
        (folder / "plan.json").write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        return folder


def load_plan(folder: Path) -> Plan:
    """Read a plan's folder back.

    Raises:
        BadInputError: `plan_missing` when it holds no finished plan, `plan_format` for another schema,
            `plan_changed` when its files are not those that were written.
    """
    try:
        summary = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError("there is no plan.json: name the folder that `plan` wrote", code="plan_missing") from error
    if summary.get("schema") != PLAN_SCHEMA:
        raise BadInputError("plan.json has another schema: plan again with this version", code="plan_format")
    loaded = Plan(
        pmr=read_nifti(folder / "pmr.nii.gz"),
        pct=read_nifti(folder / "pct.nii.gz"),
        sct=read_nifti(folder / "sct.nii.gz"),
        field_pct_from_pmr=read_field(folder / "field_pct_from_pmr.nii.gz"),
        labels={name: read_nifti(folder / f"{name}.nii.gz") for name in summary["labels"]},
        engine=summary["engine"],
        quality=summary["quality"],
        provenance={k: summary[k] for k in _PROVENANCE if k in summary},
        timings=summary["timings"],
        warnings=tuple(summary["warnings"]),
    )
    if loaded.digest != summary["plan_digest"]:
        raise BadInputError("the plan's images are not those it was made from: plan again", code="plan_changed")
    return loaded


_PROVENANCE = ("research_use_only", "release", "weight_digests", "input_digests", "code_version", "device")


def _synthesise(bundle: Bundle, pmr: Volume) -> Volume:
    from hepalign.inference.synthesise import synthesise

    return synthesise(bundle, pmr)


def plan(
    bundle: Bundle,
    pmr: Volume,
    pct: Volume,
    *,
    labels: Mapping[str, Volume] | None = None,
    engine: PlanEngine = "learned+refine",
    synthesise: Callable[[Bundle, Volume], Volume] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Make a plan.

    Args:
        bundle: the release.
        pmr: MR, any unit, any grid.
        pct: CT, HU, any grid.
        labels: `pmr_tumour`, `pct_liver`, … (or with a colon) on their image's grid.
        engine: `ants` (rigid + SyN of the synthetic CT), `learned` (affine, coarse fit and a short refinement of the
            MR) or `learned+refine`.
        synthesise: the synthesis step; serving hands in a remote one.
        progress: called with a step's name and the fraction done.

    Raises:
        BadInputError: `no_overlap`, `unknown_label`.
        UsageError: `unknown_engine`.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"no planning engine is called {engine!r}; choose one of {', '.join(ENGINES)}", code="unknown_engine"
        )
    checked = checked_labels(labels)
    clock = Clock()
    tell = progress or (lambda step, done: None)
    tell("synthesise", 0.0)
    sct = (synthesise or _synthesise)(bundle, pmr)
    clock.mark("synthesise")
    tell("register", 0.4)
    if engine == "ants":
        from hepalign.inference.ants_engine import ants_syn

        field = ants_syn(sct, pct)
        quality: Mapping[str, object] = {
            "status": "review",
            "reasons": ["ANTs reports no quality"],
            "method": "ants-syn",
        }
        warnings: tuple[str, ...] = ()
        clock.mark("register")
    else:
        # the synthetic CT is for the eye: with it beside the MR's own structure the field is no better (ADR 0013)
        done = register(bundle, pmr, pct, engine="refine" if engine == "learned+refine" else "fast", modality="mr")
        field, warnings, quality = done.field, done.warnings, done.quality
        clock.mark("register")
    tell("done", 1.0)
    timings = {**clock.timings, "compute_s": sum(clock.timings.values())}
    return Plan(
        pmr, pct, sct, field, checked, engine, quality, provenance(bundle, {"pmr": pmr, "pct": pct}), timings, warnings
    )
