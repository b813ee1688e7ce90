"""Registration of two CTs: affine start, network, instance refinement, and the field at full resolution."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.errors import UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.affine import affine_start, require_overlap
from hepalign.inference.bundle import Bundle
from hepalign.inference.folding import corner_determinants, unfold
from hepalign.inference.provenance import CONVENTION, provenance
from hepalign.inference.quality import Evidence, judge
from hepalign.inference.refine import RefineSettings, refine
from hepalign.inference.sampling import Places, from_rows, index_rows, to_rows
from hepalign.inference.workgrid import (
    canonical,
    coarsened,
    full_field,
    on_work_grid,
    resized,
    soft_tissue,
    work_geometry,
)
from hepalign.losses.similarity import mind_ssc
from hepalign.nets.precision import autocast
from hepalign.nets.regnet import RegNet
from hepalign.transform.displacement import DisplacementField, resample_field
from hepalign.transform.files import write_field
from hepalign.transform.jacobian import folding_fraction, jacobian_determinants
from hepalign.transform.velocity import integrate
from hepalign.transform.warp import outside_grid, warp

Engine = Literal["fast", "refine"]
# The network's field is not believed when more than this part of its voxels fold before repair.
FOLDING_LIMIT = 0.02
# Steps of the coarse and the fine refinement, at a quarter and a half of the work grid's resolution.
COARSE = RefineSettings(steps=16)
FINE = RefineSettings(steps=16)
INVERSE_ROUNDS = 10
BACKWARD = RefineSettings(steps=4, plateau=0.0)
DILATION = 2
# Moving and fixed features (d,h,w,12), weight (d,h,w,1).
Tables = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Registration:
    """A finished registration.

    Args:
        moving: what was registered.
        fixed: onto what.
        field: on the fixed image's grid, `warped(x) = moving(x + u(x))`; no voxel folds.
        method: what made it, e.g. `affine+network+refine`.
        quality: CONTRACT's `quality` object.
        evidence: what the verdict rests on.
        timings: seconds by step.
        warnings: what its reader should know.
        levels: the pair's feature tables, for measures taken later.
        residual: the field beyond the affine map on the half grid, voxels (d,h,w,3).
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
    residual: Tensor
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
        write_field(self.field, folder / "field.nii.gz")
        write_nifti(warp(self.moving, self.field), folder / "warped.nii.gz")
        if self.moving_label is not None and self.quality["status"] != "reject":
            write_nifti(warp(self.moving_label, self.field, mode="nearest", fill=0), folder / "warped_label.nii.gz")
        (folder / "result.json").write_text(json.dumps(self.summary(), indent=2) + "\n")
        return folder


@dataclass(frozen=True)
class Pair:
    """Two images on one work grid, the moving one under the affine start: unit intensities [1,1,D,H,W]."""

    moving: Tensor
    fixed: Tensor
    weight: Tensor  # 1 where both can be compared
    work: Geometry


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
) -> Registration:
    """Register a CT to a CT.

    Args:
        bundle: gives the registration network.
        moving: HU, any grid.
        fixed: HU, any grid; the field lives on it.
        engine: `fast` is affine + network; `refine` refines the network's field on this pair.
        probe_mask: where the fixed image shows probe and artefact: nothing there is compared.
        moving_label: a label map to carry along.
        initial: a field of the same patient's previous image (same scanner frame) to start from.
        budget_s: seconds after which refinement stops with what it has.

    Raises:
        BadInputError: `no_overlap`.
        UsageError: `unknown_engine`.
    """
    if engine not in ("fast", "refine"):
        raise UsageError(f"no registration engine is called {engine!r}; choose fast or refine", code="unknown_engine")
    clock = Clock(budget_s)
    matrix = start_matrix(moving, fixed, probe_mask, initial)
    clock.mark("affine")
    return deform(
        bundle, moving, fixed, matrix, engine=engine, probe_mask=probe_mask, moving_label=moving_label,
        initial=initial, clock=clock,
    )  # fmt: skip


def start_matrix(
    moving: Volume, fixed: Volume, probe_mask: Volume | None, initial: DisplacementField | None
) -> NDArray[np.float64]:
    """The affine start (4 x 4, fixed world to moving world), or the previous field's."""
    require_overlap(moving.geometry, fixed.geometry)
    if initial is not None:
        return initial.linear
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
) -> Registration:
    """The deformable part of `register`, after its affine start."""
    levels = Levels(make_pair(moving, fixed, matrix, probe_mask))
    clock.mark("features")
    still = torch.zeros(*levels.half_shape, 3)
    before, residual = levels.cost(still), still
    method, warnings = ["affine"], []
    refining = engine == "refine"
    if initial is not None:
        residual, method = levels.from_previous(initial, matrix), ["previous"]
    else:
        predicted, complaint = predict(bundle, levels.pair)
        if complaint is None:
            residual = predicted
            method.append("network")
        else:
            warnings.append(complaint)
            refining = True
        clock.mark("network")
    if refining:
        residual = levels.refine(residual, clock.deadline, coarse=method == ["affine"])
        method.append("refine")
        clock.mark("refine")
    failed = None if torch.isfinite(residual).all() else "no registration could be computed"
    residual = still if failed else unfold(residual)
    field = full_field(from_rows(residual), matrix, levels.half_geometry, fixed.geometry)
    clock.mark("field")
    evidence = _evidence(levels, residual, field, moving, failed)
    status, reasons = judge(evidence)
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
        "method": "+".join(method),
    }
    return Registration(
        moving, fixed, field, "+".join(method), quality, evidence, clock.timings, tuple(warnings),
        levels, residual, moving_label, provenance(bundle, {"moving": moving, "fixed": fixed}),
    )  # fmt: skip


def _evidence(
    levels: Levels, residual: Tensor, field: DisplacementField, moving: Volume, failed: str | None
) -> Evidence:
    determinants = jacobian_determinants(field)
    return Evidence(
        similarity_after=1 - levels.cost(residual),
        inverse_consistency_mm=levels.inverse_consistency_mm(residual),
        liver_dice=None,
        outside_fraction=float(outside_grid(moving.geometry, field).mean()),
        folding_fraction=folding_fraction(field),
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

    def mark(self, step: str) -> None:
        """The time since the last mark belongs to `step`."""
        now = time.perf_counter()
        self.timings[step] = self.timings.get(step, 0.0) + now - self._last
        self._last = now


class Levels:
    """MIND-SSC tables of a pair at a half and a quarter of the work grid's resolution."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.half, self.quarter = feature_levels(pair)
        i, j, k = self.half[0].shape[:3]
        self.half_shape = (i, j, k)
        self.half_geometry = pair.work.with_shape(self.half_shape)

    def cost(self, residual: Tensor) -> float:
        """Mean weighted squared MIND-SSC difference at half resolution under a residual (d,h,w,3)."""
        moving, fixed, weight = self.half
        warped = Places(index_rows(fixed.shape) + residual, moving.shape).read(moving)
        return float(((warped - fixed).square() * weight).sum() / (weight.sum() * fixed.shape[-1]).clamp_min(1))

    def refine(self, residual: Tensor, deadline: float | None, *, coarse: bool) -> Tensor:
        """Gauss-Newton at a quarter (where no network has done it) and a half of the resolution."""
        if coarse:
            moving, fixed, weight = self.quarter
            start = rescaled(residual, fixed.shape[:3])
            residual = rescaled(refine(moving, fixed, weight, start, COARSE, deadline).field, self.half_shape)
        moving, fixed, weight = self.half
        return refine(moving, fixed, weight, residual, FINE, deadline).field

    def from_previous(self, initial: DisplacementField, matrix: NDArray[np.float64]) -> Tensor:
        """A previous field's residual beyond its affine part, in voxels (d,h,w,3)."""
        world = self.half_geometry.grid_mm()
        moved = world + resample_field(initial, self.half_geometry).vectors
        back = np.linalg.inv(matrix)
        residual_mm = moved @ back[:3, :3].T + back[:3, 3] - world
        turn = np.linalg.inv(self.half_geometry.affine[:3, :3])
        return torch.from_numpy((residual_mm @ turn.T).astype(np.float32))

    def inverse_consistency_mm(self, residual: Tensor) -> float:
        """Mean distance, where images can be compared, between the field's inverse and what the backward
        registration makes of it: a field that only one direction supports does not come back.
        """
        moving, fixed, weight = self.quarter
        shape = fixed.shape[:3]
        forward, grid = rescaled(residual, shape), index_rows(shape)
        inverse = torch.zeros_like(forward)
        for _ in range(INVERSE_ROUNDS):
            inverse = -Places(grid + inverse, shape).read(forward)
        backward = refine(fixed, moving, weight, inverse, BACKWARD).field
        spacing = torch.tensor(self.pair.work.with_shape((shape[0], shape[1], shape[2])).spacing_mm).float()
        gap = forward + Places(grid + forward, shape).read(backward)
        return float(((gap * spacing).norm(dim=-1, keepdim=True) * weight).sum() / weight.sum().clamp_min(1))


def make_pair(moving: Volume, fixed: Volume, matrix: NDArray[np.float64], probe_mask: Volume | None) -> Pair:
    """Both images on the fixed image's work grid, the moving one resampled through the affine map once."""
    work = work_geometry(fixed.geometry)
    source = coarsened(moving, float(np.mean(work.spacing_mm)))
    inside_index = np.linalg.inv(source.geometry.affine) @ matrix @ work.affine
    index = torch.from_numpy(inside_index[:3].astype(np.float32))
    points = index_rows(work.shape) @ index[:, :3].T + index[:, 3]
    size = torch.tensor(source.geometry.shape, dtype=torch.float32)
    unit_points = ((points * 2 + 1) / size - 1).flip(-1)[None]
    data = soft_tissue(torch.from_numpy(np.ascontiguousarray(source.data, dtype=np.float32)))[None, None]
    moved = F.grid_sample(data, unit_points, padding_mode="border", align_corners=False)
    weight = (unit_points.abs().amax(-1) <= 1).float()[None]
    if probe_mask is not None:
        weight = weight * (1 - _hole(probe_mask, fixed.geometry, work))
    return Pair(moved, soft_tissue(on_work_grid(fixed, work)), weight, work)


def predict(bundle: Bundle, pair: Pair) -> tuple[Tensor, str | None]:
    """The network's displacement at half resolution (d,h,w,3), or why it cannot be used."""
    net = cast("RegNet", bundle.networks["registration"])
    with torch.inference_mode(), autocast("cpu"):
        velocity = net(pair.moving, pair.fixed).half
    displacement = to_rows(integrate(velocity))
    if not torch.isfinite(displacement).all():
        return displacement, "the network's output is not finite; affine + refinement was used instead"
    folded = float((corner_determinants(displacement) <= 0).float().mean())
    if folded > FOLDING_LIMIT:
        return (
            displacement,
            f"the network's field folds at {folded:.1%} of voxels; affine + refinement was used instead",
        )
    return displacement, None


def _hole(probe_mask: Volume, fixed: Geometry, work: Geometry) -> Tensor:
    """1 wherever the hole touches a work voxel or its neighbour: [1,1,D,H,W]."""
    mask = probe_mask if probe_mask.geometry.same_grid(fixed) else resample(probe_mask, fixed, mode="nearest")
    data = torch.from_numpy(np.ascontiguousarray(canonical(mask).as_mask(), dtype=np.float32))[None, None]
    return F.max_pool3d((resized(data, work.shape) > 0.01).float(), 3, stride=1, padding=1)


def feature_levels(pair: Pair) -> tuple[Tables, Tables]:
    """MIND-SSC of the full work grid averaged to a half and a quarter of its resolution.

    Taken before the averaging it keeps the vessels that a half-resolution image has lost: measured on training
    cases, a fifth to a third less error than MIND-SSC of the averaged image.
    """
    moving, fixed = (F.avg_pool3d(mind_ssc(image, dilation=DILATION), 2) for image in (pair.moving, pair.fixed))
    weight = -F.max_pool3d(-pair.weight, 2)
    half = (to_rows(moving), to_rows(fixed), to_rows(_eroded(weight)))
    quarter_weight = _eroded(-F.max_pool3d(-weight, 2))
    return half, (to_rows(F.avg_pool3d(moving, 2)), to_rows(F.avg_pool3d(fixed, 2)), to_rows(quarter_weight))


def _eroded(weight: Tensor) -> Tensor:
    # a patch that reaches into the hole or past the border does not vote either
    return -F.max_pool3d(-weight, 3, stride=1, padding=1)


def rescaled(residual: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A voxel field (d,h,w,3) on another grid over the same box, in that grid's voxels."""
    target = (int(shape[0]), int(shape[1]), int(shape[2]))
    scale = torch.tensor([n / m for n, m in zip(target, residual.shape[:3], strict=True)])
    return to_rows(resized(from_rows(residual), target)) * scale
