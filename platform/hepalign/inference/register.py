"""Registration of two CTs: affine start, network, instance refinement, and the field at full resolution."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepalign.errors import UsageError
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.inference.affine import affine_start, affine_start_mr, require_overlap
from hepalign.inference.bundle import Bundle
from hepalign.inference.folding import corner_determinants
from hepalign.inference.pair import LONG, SHORT, Effort, Levels, Modality, make_pair
from hepalign.inference.provenance import CONVENTION, provenance
from hepalign.inference.quality import Evidence, error_model, judge
from hepalign.inference.sampling import index_rows, read_at, to_rows
from hepalign.nets.precision import autocast
from hepalign.nets.regnet import RegNet
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import write_field
from hepalign.transform.jacobian import jacobian_determinants
from hepalign.transform.velocity import integrate
from hepalign.transform.warp import outside_grid, warp

Engine = Literal["network", "fast", "refine"]
# What each engine adds to what the network found: its name in `method`, and the effort.
REFINEMENT: dict[Engine, tuple[str, Effort] | None] = {
    "network": None,
    "fast": ("short-refine", SHORT),
    "refine": ("refine", LONG),
}
# The network's field is not believed when more than this part of its voxels fold before repair.
FOLDING_LIMIT = 0.02


@dataclass(frozen=True)
class Registration:
    """A finished registration.

    Args:
        moving: what was registered.
        fixed: onto what.
        field: on the fixed image's grid, `warped(x) = moving(x + u(x))`; no voxel folds.
        method: what made it, e.g. `affine+coarse+network+refine`.
        quality: CONTRACT's `quality` object.
        evidence: what the verdict rests on.
        timings: seconds by step.
        warnings: what its reader should know.
        levels: the pair's feature tables, for measures taken later.
        spread_mm: how far fields from other starts lie apart, (d,h,w,1) on `levels.quarter_geometry`.
        moving_label: a label map that came with the moving image.
        provenance: release, digests, code version.
    """

    moving: Volume
    fixed: Volume
    field: DisplacementField
    method: str
    quality: Mapping[str, object]
    evidence: Evidence
    timings: Mapping[str, float]
    warnings: tuple[str, ...]
    levels: Levels
    spread_mm: Tensor
    moving_label: Volume | None = None
    provenance: Mapping[str, object] = dataclass_field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """The content of `result.json`."""
        return {
            **self.provenance,
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "quality": dict(self.quality),
            "convention": CONVENTION,
            "warnings": list(self.warnings),
        }

    def save(self, folder: Path) -> Path:
        """Write field.nii.gz, warped.nii.gz, warped_label.nii.gz (where a label came in) and result.json."""
        folder.mkdir(parents=True, exist_ok=True)
        # what another registration left there must not stand beside this one's
        for name in ("result.json", "warped_label.nii.gz"):
            (folder / name).unlink(missing_ok=True)
        write_field(self.field, folder / "field.nii.gz")
        write_nifti(warp(self.moving, self.field), folder / "warped.nii.gz")
        if self.moving_label is not None and self.quality["status"] != "reject":
            write_nifti(warp(self.moving_label, self.field, mode="nearest", fill=0), folder / "warped_label.nii.gz")
        (folder / "result.json").write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        return folder


def register(
    bundle: Bundle,
    moving: Volume,
    fixed: Volume,
    *,
    engine: Engine = "refine",
    probe_mask: Volume | None = None,
    moving_label: Volume | None = None,
    initial: DisplacementField | None = None,
    budget_s: float | None = None,
    modality: Modality = "ct",
) -> Registration:
    """Register a CT, or an MR, to a CT.

    Args:
        bundle: gives the registration network.
        moving: HU, or an MR in any unit; any grid.
        fixed: HU, any grid; the field lives on it.
        engine: `network` is affine, coarse start and network; `fast` refines that shortly, `refine` longer.
        probe_mask: coarsely, where the fixed image shows probe and artefact: what looks like neither metal nor its
            shadow is compared there too, but has no part in the affine start.
        moving_label: a label map to carry along.
        initial: a field of the same patient's previous image (same scanner frame) to start from.
        budget_s: seconds after which refinement stops with what it has.
        modality: the moving image's. The network, which learned from CT alone, is not asked about an MR.

    Raises:
        BadInputError: `no_overlap`.
        UsageError: `unknown_engine`.
    """
    if engine not in REFINEMENT:
        names = ", ".join(REFINEMENT)
        raise UsageError(f"no registration engine is called {engine!r}; there are {names}", code="unknown_engine")
    clock = Clock(budget_s)
    matrix = start_matrix(moving, fixed, probe_mask, initial, modality)
    clock.mark("affine")
    done = deform(
        bundle, moving, fixed, matrix, engine=engine, probe_mask=probe_mask, moving_label=moving_label,
        initial=initial, clock=clock, modality=modality,
    )  # fmt: skip
    return replace(done, provenance=provenance(bundle, {"moving": moving, "fixed": fixed}))


def start_matrix(
    moving: Volume,
    fixed: Volume,
    probe_mask: Volume | None,
    initial: DisplacementField | None,
    modality: Modality = "ct",
) -> NDArray[np.float64]:
    """The affine start (4 x 4, fixed world to moving world), or the previous field's."""
    require_overlap(moving.geometry, fixed.geometry)
    if initial is not None:
        return initial.linear
    if modality == "mr":
        return affine_start_mr(moving, fixed).matrix
    valid = None if probe_mask is None else probe_mask.with_data(1.0 - probe_mask.as_mask().astype(np.float32))
    return affine_start(moving, fixed, fixed_valid=valid).matrix


def deform(
    bundle: Bundle,
    moving: Volume,
    fixed: Volume,
    matrix: NDArray[np.float64],
    *,
    engine: Engine,
    probe_mask: Volume | None,
    moving_label: Volume | None = None,
    initial: DisplacementField | None = None,
    clock: Clock,
    modality: Modality = "ct",
) -> Registration:
    """The deformable part of `register`, after its affine start."""
    levels = Levels(make_pair(moving, fixed, matrix, probe_mask, modality))
    clock.mark("features")
    still = torch.zeros(*levels.half_shape, 3)
    before, residual = levels.cost(still), still
    warnings = []
    if initial is not None:
        residual, method = levels.followed(levels.from_previous(initial, matrix)), ["previous"]
        clock.mark("coarse")
    else:
        start, method = levels.coarse(), ["affine", "coarse"]
        clock.mark("coarse")
        if modality == "ct":
            residual, complaint = predict(bundle, levels, start)
            if complaint is None:
                method.append("network")
            else:
                residual, engine = start, "refine"
                warnings.append(complaint)
            clock.mark("network")
        else:
            # it learned from CT alone: measured, an MR's refined field is worse after it (3.58 mm against 3.47)
            residual = start
    refinement = REFINEMENT[engine]
    if refinement is not None and clock.is_over():
        warnings.append("the budget was used up before the refinement: the field is not refined")
    elif refinement is not None:
        name, effort = refinement
        residual = levels.refine(residual, effort, clock.deadline)
        method.append(name)
        clock.mark("refine")
        if clock.is_over():
            warnings.append("the budget ended the refinement early")
    failed = None if torch.isfinite(residual).all() else "no registration could be computed"
    residual, field = levels.unfolded_field(still if failed else residual, matrix, fixed.geometry)
    clock.mark("field")
    spread_mm = levels.spread_mm(residual)
    evidence = _evidence(levels, before, residual, spread_mm, field, moving, failed)
    model = error_model(modality)
    status, reasons = judge(evidence, model)
    clock.mark("quality")
    quality = {
        "status": status,
        "reasons": reasons,
        "folding_fraction": evidence.folding_fraction,
        "jacobian_min": evidence.jacobian_min,
        "jacobian_max": evidence.jacobian_max,
        "inverse_consistency_mm": evidence.inverse_consistency_mm,
        "similarity_before": 1 - before,
        "similarity_after": evidence.similarity_after,
        "expected_error_mm": model.expected_error_mm(evidence.measures()),
        "method": "+".join(method),
    }
    return Registration(
        moving, fixed, field, "+".join(method), quality, evidence, clock.timings, tuple(warnings),
        levels, spread_mm, moving_label,
    )  # fmt: skip


def _evidence(
    levels: Levels,
    before: float,
    residual: Tensor,
    spread_mm: Tensor,
    field: DisplacementField,
    moving: Volume,
    failed: str | None,
) -> Evidence:
    determinants = jacobian_determinants(field)
    weight = levels.quarter[2]
    return Evidence(
        similarity_before=1 - before,
        similarity_after=1 - levels.cost(residual),
        worst_similarity=1 - levels.worst_cost(residual),
        inverse_consistency_mm=levels.inverse_consistency_mm(residual),
        spread_mm=float((spread_mm * weight).sum() / weight.sum().clamp_min(1)),
        strain=levels.strain(residual),
        liver_dice=None,
        outside_fraction=float(outside_grid(moving.geometry, field).mean()),
        folding_fraction=0.0,
        jacobian_min=float(determinants.min()),
        jacobian_max=float(determinants.max()),
        failed=failed,
    )


class Clock:
    """Seconds by step, and the moment at which the budget ends."""

    def __init__(self, budget_s: float | None = None) -> None:
        self._last = time.perf_counter()
        self.deadline = None if budget_s is None else self._last + budget_s
        self.timings: dict[str, float] = {}

    def is_over(self) -> bool:
        """Whether the budget is used up."""
        return self.deadline is not None and time.perf_counter() > self.deadline

    def mark(self, step: str) -> None:
        """The time since the last mark belongs to `step`."""
        now = time.perf_counter()
        self.timings[step] = self.timings.get(step, 0.0) + now - self._last
        self._last = now


def predict(bundle: Bundle, levels: Levels, start: Tensor) -> tuple[Tensor, str | None]:
    """The displacement (d,h,w,3) that start and network make at half resolution, or why it cannot be used."""
    net = cast("RegNet", bundle.networks["registration"])
    with torch.inference_mode(), autocast("cpu"):
        velocity = net(levels.network_inputs(start))
    if not torch.isfinite(velocity).all():
        return start, "the network's output is not finite; affine + refinement was used instead"
    added = to_rows(integrate(velocity.float()))
    displacement = added + read_at(start, index_rows(start.shape) + added)
    folded = float((corner_determinants(displacement) <= 0).float().mean())
    if folded > FOLDING_LIMIT:
        return (
            displacement,
            f"the network's field folds at {folded:.1%} of voxels; affine + refinement was used instead",
        )
    return displacement, None
