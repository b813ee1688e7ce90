"""Two images made comparable: one grid around the fixed body, the affine start applied, MIND-SSC at two levels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.coarse import COARSE, CoarseSettings, coarse_fit, coarse_start, eroded
from hepalign.inference.folding import corner_determinants, unfold
from hepalign.inference.refine import refine
from hepalign.inference.sampling import Places, from_rows, index_rows, read_at, smooth_rows, to_rows
from hepalign.inference.uncertainty import start_spread
from hepalign.inference.workgrid import (
    SHAPE_MULTIPLE,
    canonical,
    coarsened,
    ct_work_spacing_mm,
    full_field,
    mr_work_spacing_mm,
    on_work_grid,
    resized,
    soft_tissue,
    work_geometry,
)
from hepalign.losses.similarity import pooled_mind, voxel_mind
from hepalign.transform.displacement import DisplacementField, resample_field
from hepalign.transform.jacobian import fold_mask
from hepalign.transform.warp import bounding_box

INVERSE_ROUNDS = 10
# Where registration failed locally, it failed over a few centimetres: 2 voxels of 5.6 mm, as a deviation.
WORST_SIGMA_VOXELS = 2.0
BACKWARD = CoarseSettings(steps=4, plateau=0.0)
SAFE_DETERMINANTS = (0.05, 0.15, 0.3, 0.5)
SHRINK = 0.8
# Bone fills the top of the soft-tissue window. Breathing glides the organs along it: what it says of the motion counts
# a twentieth in refinement, or a field that is smooth everywhere takes the liver's rim along with the ribs.
BONE_UNIT, BONE_SHARE = 0.99, 0.05
# What tissue can look like. A coarse mask covers far more than the artefact: three quarters of the simulated ones show
# the tissue within 40 HU. What is neither metal nor its shadow, and not next to either, is compared like all the rest:
# measured on five development phantoms, the error at the tumour falls by a third (ADR 0012).
TISSUE_HU = (-300.0, 600.0)
# Soft tissue, and how far around it the grid reaches.
BODY_UNIT = -0.6
BODY_MARGIN_VOXELS = 4
# Moving and fixed features (d,h,w,12), weight (d,h,w,1).
Tables = tuple[Tensor, Tensor, Tensor]
Box = tuple[slice, slice, slice]
Modality = Literal["ct", "mr"]


@dataclass(frozen=True)
class Effort:
    """Gauss-Newton steps at half of the work grid's resolution, and then at all of it."""

    half_steps: int
    full_steps: int


# How far `fast` and `refine` go.
SHORT = Effort(4, 0)
LONG = Effort(6, 3)


@dataclass(frozen=True)
class Pair:
    """Two images on the work grid's part around the fixed body, the moving one under the affine start.

    Args:
        moving: unit intensities [1,1,D,H,W]; an MR's as they came.
        fixed: unit intensities.
        weight: 1 where both can be compared.
        work: the grid of these three.
        whole: the work grid over the fixed image's whole box.
        box: `work` in `whole`; starts and lengths are multiples of 16 voxels.
        modality: the moving image's.
    """

    moving: Tensor
    fixed: Tensor
    weight: Tensor
    work: Geometry
    whole: Geometry
    box: Box
    modality: Modality = "ct"


def make_pair(
    moving: Volume,
    fixed: Volume,
    matrix: NDArray[np.float64],
    probe_mask: Volume | None,
    modality: Modality = "ct",
) -> Pair:
    """Both images around the fixed body, the moving one resampled through the affine map once."""
    # an MR's tumours need the finer grid even where the CT is coarse
    mr = modality == "mr"
    spacing_mm = mr_work_spacing_mm(moving.geometry, fixed.geometry) if mr else ct_work_spacing_mm(fixed.geometry)
    whole = work_geometry(fixed.geometry, spacing_mm)
    fixed_unit = soft_tissue(on_work_grid(fixed, whole))
    box = body_box(fixed_unit)
    i, j, k = (part.stop - part.start for part in box)
    work = whole.crop((box[0].start, box[1].start, box[2].start), (i, j, k))
    moved, weight = _moved(moving, matrix, work, modality)
    if probe_mask is not None:
        weight = weight * (1 - _artefact(probe_mask, fixed, whole)[(..., *box)])
    return Pair(moved, fixed_unit[(..., *box)].contiguous(), weight, work, whole, box, modality)


def _moved(moving: Volume, matrix: NDArray[np.float64], work: Geometry, modality: Modality) -> tuple[Tensor, Tensor]:
    """The image seen through the affine map on the work grid, and 1 where it reaches: [1,1,D,H,W] each."""
    source = coarsened(moving, float(np.mean(work.spacing_mm)))
    index = torch.from_numpy((np.linalg.inv(source.geometry.affine) @ matrix @ work.affine)[:3].astype(np.float32))
    points = index_rows(work.shape) @ index[:, :3].T + index[:, 3]
    size = torch.tensor(source.geometry.shape, dtype=torch.float32)
    unit_points = ((points * 2 + 1) / size - 1).flip(-1)[None]
    data = torch.from_numpy(np.ascontiguousarray(source.data, dtype=np.float32))[None, None]
    data = soft_tissue(data) if modality == "ct" else data
    moved = F.grid_sample(data, unit_points, padding_mode="border", align_corners=False)
    return moved, (unit_points.abs().amax(-1) <= 1).float()[None]


def body_box(unit: Tensor) -> Box:
    """The box of blocks of 4 voxels that hold soft tissue, with a margin, in multiples of 16 voxels."""
    block = 4
    dense = F.avg_pool3d(unit, block)[0, 0] > BODY_UNIT
    parts = []
    for axis, length in enumerate(unit.shape[2:]):
        filled = dense.amax(dim=tuple(a for a in range(3) if a != axis)).nonzero().flatten()
        first, last = (0, length) if len(filled) == 0 else (int(filled[0]) * block, (int(filled[-1]) + 1) * block)
        first, last = max(0, first - BODY_MARGIN_VOXELS), min(length, last + BODY_MARGIN_VOXELS)
        size = min(length, -(-(last - first) // SHAPE_MULTIPLE) * SHAPE_MULTIPLE)
        start = min(max(0, (first + last - size) // 2 // block * block), length - size)
        parts.append(slice(start, start + size))
    return parts[0], parts[1], parts[2]


class Levels:
    """MIND-SSC tables of a pair at a half and a quarter of the work grid's resolution."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.weight = -F.max_pool3d(-pair.weight, 2)
        self.half, self.quarter = feature_levels(pair, self.weight)
        self.refine_weight = self.half[2] * to_rows(F.avg_pool3d(_bone_weight(pair), 2))
        self.soft = self.half[2] * to_rows((F.avg_pool3d(pair.fixed, 2) > BODY_UNIT).float())
        i, j, k = self.half[0].shape[:3]
        self.half_shape = (i, j, k)
        self.half_geometry = pair.work.with_shape(self.half_shape)
        i, j, k = self.quarter[0].shape[:3]
        self.quarter_geometry = pair.work.with_shape((i, j, k))

    def cost(self, residual: Tensor) -> float:
        """Mean squared MIND-SSC difference in soft tissue at half resolution under a residual (d,h,w,3).

        Air and lung agree in anybody; measured, only the soft tissue tells another patient from the right one.
        """
        return float(self._differences(residual).sum() / self.soft.sum().clamp_min(1))

    def worst_cost(self, residual: Tensor) -> float:
        """The same where it is worst: the 99th percentile in soft tissue of its mean over some centimetres."""
        around = torch.cat([self._differences(residual), self.soft], -1)
        costs, share = smooth_rows(around, WORST_SIGMA_VOXELS).unbind(-1)
        inside = self.soft[..., 0] > 0
        if not inside.any():
            return 0.0
        return float(np.percentile((costs[inside] / share[inside].clamp_min(1e-3)).numpy(), 99))

    def _differences(self, residual: Tensor) -> Tensor:
        moving, fixed, _ = self.half
        warped = read_at(moving, index_rows(fixed.shape) + residual)
        return (warped - fixed).square().mean(-1, keepdim=True) * self.soft

    def strain(self, residual: Tensor) -> float:
        """Mean absolute logarithm of the local volume change in soft tissue (least corner): 0 for a rigid body."""
        change = corner_determinants(residual).clamp_min(1e-3).log().abs()[..., None]
        return float((change * self.soft).sum() / self.soft.sum().clamp_min(1))

    def coarse(self) -> Tensor:
        """A start for everything finer: Gauss-Newton at a quarter of the resolution, as residual (d,h,w,3)."""
        features = torch.cat([from_rows(rows) for rows in self.half[:2]])
        return to_rows(coarse_start(features, self.weight))

    def network_inputs(self, start: Tensor) -> Tensor:
        """What `RegNet` takes, the moving features seen through a start (d,h,w,3): MIND-SSC and intensity.

        Where the images cannot be compared (probe, artefact) the fixed one shows what the moving one does.
        """
        moving, fixed, weight = self.half
        seen = torch.cat([moving, to_rows(F.avg_pool3d(self.pair.moving, 2))], -1)
        seen = read_at(seen, index_rows(fixed.shape) + start)
        still = torch.cat([fixed, to_rows(F.avg_pool3d(self.pair.fixed, 2))], -1)
        return torch.cat([from_rows(seen), from_rows(torch.lerp(seen, still, weight))])

    def refine(self, residual: Tensor, effort: Effort, deadline: float | None = None) -> Tensor:
        """The residual (d,h,w,3) refined at half of the resolution, then at all of it."""
        moving, fixed, _ = self.half
        control = rescaled(residual, self.quarter[0].shape)
        spacing_mm = float(np.mean(self.quarter_geometry.spacing_mm))
        control = refine(moving, fixed, self.refine_weight, control, spacing_mm, effort.half_steps, deadline)
        residual = rescaled(control, self.half_shape)
        if effort.full_steps == 0 or (deadline is not None and time.perf_counter() > deadline):
            return residual
        spacing_mm = float(np.mean(self.half_geometry.spacing_mm))
        return refine(*full_features(self.pair), residual, spacing_mm, effort.full_steps, deadline)

    def followed(self, residual: Tensor) -> Tensor:
        """A previous residual after Gauss-Newton at a quarter of the resolution, where that helps."""
        moving, fixed, weight = self.quarter
        found = coarse_fit(moving, fixed, weight, rescaled(residual, fixed.shape[:3]), COARSE).field
        found = rescaled(found, self.half_shape)
        return found if self.cost(found) < self.cost(residual) else residual

    def from_previous(self, initial: DisplacementField, matrix: NDArray[np.float64]) -> Tensor:
        """A previous field's residual beyond its affine part, in voxels (d,h,w,3)."""
        world = self.half_geometry.grid_mm()
        moved = world + resample_field(initial, self.half_geometry).vectors
        back = np.linalg.inv(matrix)
        residual_mm = moved @ back[:3, :3].T + back[:3, 3] - world
        turn = np.linalg.inv(self.half_geometry.affine[:3, :3])
        return torch.from_numpy((residual_mm @ turn.T).astype(np.float32))

    def inverse_consistency_mm(self, residual: Tensor) -> float:
        """How far the backward registration leads away from the field's inverse, mean in mm where images compare.

        It starts at the inverse: a field that only one direction supports does not stay there.
        """
        moving, fixed, weight = self.quarter
        shape = fixed.shape[:3]
        forward, grid = rescaled(residual, shape), index_rows(shape)
        inverse = torch.zeros_like(forward)
        for _ in range(INVERSE_ROUNDS):
            inverse = -Places(grid + inverse, shape).read(forward)
        backward = coarse_fit(fixed, moving, weight, inverse, BACKWARD).field
        spacing = torch.tensor(self.quarter_geometry.spacing_mm).float()
        gap = forward + Places(grid + forward, shape).read(backward)
        return float(((gap * spacing).norm(dim=-1, keepdim=True) * weight).sum() / weight.sum().clamp_min(1))

    def spread_mm(self, residual: Tensor) -> Tensor:
        """How far fields reached from other starts lie apart, mm, (d,h,w,1) at a quarter of the resolution."""
        spread = start_spread(self.quarter, rescaled(residual, self.quarter[0].shape[:3]))
        apart: Tensor = (spread * torch.tensor(self.quarter_geometry.spacing_mm).float()).norm(dim=-1, keepdim=True)
        return apart

    def unfolded_field(
        self, residual: Tensor, matrix: NDArray[np.float64], fixed: Geometry
    ) -> tuple[Tensor, DisplacementField]:
        """The residual without folds, and its field, in which no voxel of the fixed image's grid folds either.

        Interpolating a field whose corners are sound can still fold between them, so the finished field is looked
        at as well; a rarer and rarer remedy follows, and at last the residual shrinks, which ends every fold.
        """
        for safe in SAFE_DETERMINANTS:
            residual = unfold(residual, safe)
            field = self.field(residual, matrix, fixed)
            if not fold_mask(field).any():
                return residual, field
        while fold_mask(field).any():
            residual = residual * SHRINK
            field = self.field(residual, matrix, fixed)
        return residual, field

    def field(self, residual: Tensor, matrix: NDArray[np.float64], fixed: Geometry) -> DisplacementField:
        """The whole map x ↦ A(x + r(x)) on the fixed image's own grid; beyond the body's box r continues flat."""
        pads: list[int] = []
        for part, length in zip(reversed(self.pair.box), reversed(self.pair.whole.shape), strict=True):
            pads += [part.start // 2, (length - part.stop) // 2]
        extended = F.pad(from_rows(residual), pads, mode="replicate")
        i, j, k = extended.shape[2:]
        return full_field(extended, matrix, self.pair.whole.with_shape((i, j, k)), fixed)


def feature_levels(pair: Pair, weight: Tensor) -> tuple[Tables, Tables]:
    """MIND-SSC at a half and a quarter of the work grid's resolution, and where it counts (`weight` at a half)."""
    moving, fixed = pooled_mind(pair.moving), pooled_mind(pair.fixed)
    half = (to_rows(moving), to_rows(fixed), to_rows(eroded(weight)))
    quarter_weight = eroded(-F.max_pool3d(-weight, 2))
    return half, (to_rows(F.avg_pool3d(moving, 2)), to_rows(F.avg_pool3d(fixed, 2)), to_rows(quarter_weight))


def full_features(pair: Pair) -> Tables:
    """MIND-SSC of single voxels at the work grid's own resolution, and where it counts in refinement."""
    weight = eroded(pair.weight) * _bone_weight(pair)
    return to_rows(voxel_mind(pair.moving)), to_rows(voxel_mind(pair.fixed)), to_rows(weight)


def _bone_weight(pair: Pair) -> Tensor:
    """`BONE_SHARE` in and beside the bone of either CT, else 1: [1,1,D,H,W]."""
    brightest = torch.maximum(pair.fixed, pair.moving) if pair.modality == "ct" else pair.fixed
    bone = F.max_pool3d(brightest, 3, stride=1, padding=1) > BONE_UNIT
    return 1 - (1 - BONE_SHARE) * bone.float()


def _artefact(probe_mask: Volume, fixed: Volume, work: Geometry) -> Tensor:
    """1 wherever metal or its shadow within the coarse mask touches a work voxel or its neighbour: [1,1,D,H,W]."""
    mask = probe_mask if probe_mask.geometry.same_grid(fixed.geometry) else resample(
        probe_mask, fixed.geometry, mode="nearest"
    )  # fmt: skip
    found = mask.as_mask().copy()
    box = bounding_box(found)
    if box is not None:
        hu = np.asarray(fixed.data[box], np.float32)
        found[box] &= (hu < TISSUE_HU[0]) | (hu > TISSUE_HU[1])
    data = torch.from_numpy(np.ascontiguousarray(canonical(mask.with_data(found)).data, dtype=np.float32))[None, None]
    return F.max_pool3d((resized(data, work.shape) > 0.01).float(), 3, stride=1, padding=1)


def rescaled(residual: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A voxel field (d,h,w,3) on another grid over the same box, in that grid's voxels."""
    target = (int(shape[0]), int(shape[1]), int(shape[2]))
    scale = torch.tensor([n / m for n, m in zip(target, residual.shape[:3], strict=True)])
    return to_rows(resized(from_rows(residual), target)) * scale
