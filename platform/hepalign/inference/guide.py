"""During the procedure: the plan's MR, CT and labels brought onto the intra-procedural CT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from hepalign.errors import BadInputError, UsageError
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.fusion import fuse
from hepalign.inference.inpaint import Inpainted, box_around
from hepalign.inference.inpaint import inpaint as inpaint_here
from hepalign.inference.labels import LabelMap, warp_labels
from hepalign.inference.planner import Plan, Progress
from hepalign.inference.provenance import provenance
from hepalign.inference.quality import (
    HIDDEN_SHARE,
    dice,
    error_model,
    hidden_share,
    judge,
    margin_coverage,
    tumour_names,
)
from hepalign.inference.register import Clock, Engine, Registration, deform, start_matrix
from hepalign.inference.result import GuideResult
from hepalign.inference.sampling import Places
from hepalign.transform.displacement import DisplacementField, compose, resample_field
from hepalign.transform.warp import warp, warp_together

InpaintStep = Callable[[Bundle, Volume, Volume, Volume], Inpainted]
Keep = Callable[[str, Volume | DisplacementField], None]


def guide(
    bundle: Bundle,
    plan: Plan,
    ict: Volume,
    probe_mask: Volume,
    *,
    engine: Engine = "refine",
    previous: DisplacementField | None = None,
    budget_s: float | None = None,
    labels: Mapping[str, Volume] | None = None,
    ablation: Volume | None = None,
    inpaint: InpaintStep | None = None,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> GuideResult:
    """Bring a plan onto an intra-procedural CT.

    Args:
        bundle: the release.
        plan: of the same patient.
        ict: HU, any grid.
        probe_mask: True over probe and artefact, on the iCT's grid.
        engine: `fast` or `refine`.
        previous: the field of an earlier iCT of the same session (`load_previous`), to start from.
        budget_s: seconds after which refinement stops with what it has.
        labels: `ict_liver` (judges the result), where the site has one.
        ablation: the planned or seen ablation zone on the iCT, for the margins.
        inpaint: the inpainting step on the hole's box; serving hands in a remote one.
        progress: called with a step's name and the fraction done.
        keep: called with each of the result's larger parts and its name as soon as it is final (`ResultWriter.keep`).

    Raises:
        BadInputError: `no_overlap`, `probe_mask_grid`, `empty_mask`.
        UsageError: `unknown_engine`.
    """
    if engine not in ("fast", "refine"):
        raise UsageError(f"no guide engine is called {engine!r}; choose fast or refine", code="unknown_engine")
    if not probe_mask.geometry.same_grid(ict.geometry):
        raise BadInputError(
            "the probe mask lies on another grid than the iCT: resample it first", code="probe_mask_grid"
        )
    clock = Clock(budget_s)
    tell = progress or (lambda step, done: None)
    keep = keep or (lambda name, part: None)
    tell("affine", 0.0)
    matrix = start_matrix(plan.pct, ict, probe_mask, previous)
    clock.mark("affine")
    tell("register", 0.2)
    done = deform(bundle, plan.pct, ict, matrix, engine=engine, probe_mask=probe_mask, initial=previous, clock=clock)
    keep("field_ict_from_pct", done.field)
    tell("inpaint", 0.6)
    inpainted = _inpainted(bundle, plan.pct, ict, probe_mask, done.field, inpaint or inpaint_here)
    clock.mark("inpaint")
    keep("inpct", inpainted.image)
    tell("warp", 0.8)
    result = _finish(bundle, plan, ict, inpainted, done, labels or {}, ablation, clock, keep)
    tell("done", 1.0)
    return result


def _inpainted(
    bundle: Bundle, pct: Volume, ict: Volume, probe_mask: Volume, field: DisplacementField, step: InpaintStep
) -> Inpainted:
    """The iCT without the probe, its tissue under the coarse mask kept where the fill may be misaligned.

    The step gets the box that it looks at: little to compute, and little to send.
    """
    box = box_around(probe_mask)
    region = ict.crop(box)
    # NaN beyond the pCT, for its absence is no anatomy that a hole could be filled with
    prior = warp(pct, resample_field(field, region.geometry), fill=float("nan"))
    hole = probe_mask.crop(box)
    image = ict.as_float().copy()
    filled = step(bundle, region, hole, prior)
    image[box] = fuse(region, hole, filled.image).data
    return Inpainted(ict.with_data(image), ict.with_data(probe_mask.as_mask()), filled.warnings)


def _finish(
    bundle: Bundle,
    plan: Plan,
    ict: Volume,
    inpainted: Inpainted,
    done: Registration,
    labels: Mapping[str, Volume],
    ablation: Volume | None,
    clock: Clock,
    keep: Keep,
) -> GuideResult:
    from_pct = done.field
    from_pmr = compose(plan.field_pct_from_pmr, from_pct)
    clock.mark("compose")
    keep("field_ict_from_pmr", from_pmr)
    # the largest file first: it is packed during the rest
    pmr_on_ict, sct_on_ict = warp_together([plan.pmr, plan.sct], from_pmr)
    keep("pmr_on_ict", pmr_on_ict)
    keep("sct_on_ict", sct_on_ict)
    pct_on_ict = warp(plan.pct, from_pct)
    keep("pct_on_ict", pct_on_ict)
    carried = warp_labels(plan.labels, from_pct, from_pmr)
    clock.mark("warp")
    hole = inpainted.mask.as_mask()
    tumours = tumour_masks(carried)
    uncertainty = _uncertainty(done, tumours, plan)
    evidence = replace(
        done.evidence,
        liver_dice=_liver_dice(carried, labels),
        uncertainty_mm=max(uncertainty.values(), default=None),
    )
    status, reasons = judge(evidence)
    in_hole = any(hidden_share(mask, hole) > HIDDEN_SHARE for mask in tumours.values())
    doubts = _doubts(plan, tumours, in_hole=in_hole)
    if doubts and status == "accept":
        status = "review"
    if plan.quality["status"] == "reject":
        status, doubts = "reject", [*doubts, "the plan itself was rejected"]
    failures = [*done.warnings, *inpainted.warnings]
    warnings = [*failures]
    if carried is None or "liver" not in carried.names.values():
        warnings.append("no liver mask came in: the liver's overlap was not judged")
    clock.mark("quality")
    quality = {**done.quality, "status": status, "reasons": [*reasons, *doubts]}
    if evidence.liver_dice is not None:
        quality["liver_dice"] = evidence.liver_dice
    margins = {} if ablation is None else {
        name: margin_coverage(ict.with_data(mask), resample(ablation, ict.geometry, mode="nearest"))
        for name, mask in tumours.items()
        if mask.any()
    }  # fmt: skip
    inputs = {"ict": ict, "probe_mask": inpainted.mask}
    return GuideResult(
        ict=ict,
        inpct=inpainted.image,
        inpainted_mask=inpainted.mask,
        pct_on_ict=pct_on_ict,
        pmr_on_ict=pmr_on_ict,
        sct_on_ict=sct_on_ict,
        labels_on_ict=None if evidence.failed else carried,
        field_ict_from_pct=from_pct,
        field_ict_from_pmr=from_pmr,
        quality=quality,
        provenance=provenance(bundle, inputs),
        timings={**clock.timings, "compute_s": sum(clock.timings.values())},
        plan_digest=plan.digest,
        warnings=tuple(warnings),
        degraded=bool(failures),
        uncertainty_mm=uncertainty,
        margins=margins,
        tumour_in_hole=in_hole,
        outside_grid_fraction=done.evidence.outside_fraction,
    )


def tumour_masks(labels: LabelMap | None) -> dict[str, NDArray[np.bool_]]:
    """Each tumour's voxels on the iCT, by name."""
    if labels is None:
        return {}
    return {name: np.asarray(labels.volume.data) == value for name, value in tumour_names(labels).items()}


def _liver_dice(carried: LabelMap | None, labels: Mapping[str, Volume]) -> float | None:
    given = {name.replace(":", "_"): volume for name, volume in labels.items()}
    if carried is None or "ict_liver" not in given or "liver" not in carried.names.values():
        return None
    seen = resample(given["ict_liver"], carried.volume.geometry, mode="nearest").as_mask()
    return dice(np.asarray(carried.volume.data) > 0, seen)


def _doubts(plan: Plan, tumours: Mapping[str, NDArray[np.bool_]], *, in_hole: bool) -> list[str]:
    """Why a person must look, whatever the registration of the two CTs shows."""
    doubts = []
    if in_hole:
        doubts.append("a tumour lies in the inpainted region: it was not seen")
    doubts += [f"no voxel of {name} lies in the iCT" for name, mask in tumours.items() if not mask.any()]
    if plan.quality["status"] == "review":
        why = "; ".join(str(reason) for reason in cast("list[object]", plan.quality["reasons"]))
        doubts.append(f"the plan is to be reviewed: {why}")
    return doubts


def _uncertainty(done: Registration, tumours: Mapping[str, NDArray[np.bool_]], plan: Plan) -> dict[str, float]:
    """The error to be expected at each tumour, mm: the field's spread there, as it was seen to relate to the error.

    A tumour that was drawn on the MR alone came through the plan's registration as well, whose error is independent;
    where the plan knows none (ANTs), nobody can say.
    """
    planned_mm = 0.0 if "pct_tumour" in plan.labels else plan.quality.get("expected_error_mm")
    if planned_mm is None:
        return {}
    levels, found = done.levels, {}
    for name, mask in tumours.items():
        if mask.any():
            points = done.fixed.geometry.index_to_world(np.argwhere(mask))
            indices = torch.from_numpy(levels.quarter_geometry.world_to_index(points)).float()
            spread_mm = Places(indices, done.spread_mm.shape).read(done.spread_mm)
            here_mm = error_model().tumour_scale * float(spread_mm.mean())
            found[name] = round(math.hypot(here_mm, cast("float", planned_mm)), 3)
    return found
