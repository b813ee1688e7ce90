"""Instance refinement: the field that explains one pair's MIND-SSC best while it bends least.

Gauss-Newton on  Σ w |M(x + u) − F(x)|² + κ |∇²u|²  with the displacement u on a grid of half the features'
resolution. The bending energy (κ) carries what structure says through tissue without any, and through the probe's
hole; measured on development pairs, steps that are each voxel's own and smoothed afterwards follow the noise there.
Each step's linear system is solved by conjugate gradients, preconditioned by the 3 x 3 blocks of its diagonal.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hepalign.inference.normal_equations import adjugate, normal_equations
from hepalign.inference.sampling import from_rows, index_rows, read_at, smooth, to_rows

# κ for twelve channels, mm²; what follows is for the same.
STIFFNESS_MM2 = 31.0
# Neighbourhood over which the normal equations are pooled, as a deviation.
POOL_MM = 11.2
LONGEST_STEP_MM = 8.0
DAMPING = 3e-4
SOLVER_ROUNDS = 20
# The diagonal of the squared Laplacian: 6² + 6.
SQUARED_LAPLACIAN_DIAGONAL = 42.0
TINY = 1e-20


@torch.inference_mode()
def refine(
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    control: Tensor,
    spacing_mm: float,
    steps: int,
    deadline: float | None = None,
) -> Tensor:
    """Improve a field so that moving(x + u(x)) ≈ fixed(x).

    Args:
        moving: feature table (2d,2h,2w,C).
        fixed: the same shape.
        weight: (2d,2h,2w,1), 0 where the images cannot be compared.
        control: start, (d,h,w,3) in voxels of this grid.
        spacing_mm: of this grid.
        steps: Gauss-Newton's.
        deadline: `time.perf_counter()` at which to stop with what has been reached.

    Returns:
        the field, as `control`.
    """
    grid = index_rows(fixed.shape)
    stiffness, damping = (fixed.shape[-1] / 12 * value for value in (STIFFNESS_MM2 / spacing_mm**2, DAMPING))
    field = from_rows(control)[0].contiguous()
    for _ in range(steps):
        if deadline is not None and time.perf_counter() > deadline:
            break
        equations, _cost = normal_equations(read_at(moving, grid + _on_features(field)), fixed, weight)
        pooled = smooth(F.avg_pool3d(equations[None], 2)[0], POOL_MM / spacing_mm)
        # a voxel of the control grid is two of the features': the slopes along it are twice as steep
        matrix, right = 4 * pooled[:6], 2 * pooled[6:]
        step = _solved(matrix, right - stiffness * _bending(field), stiffness, damping)
        length = step.norm(dim=0, keepdim=True)
        longest = LONGEST_STEP_MM / spacing_mm
        field = field + step * (longest / length.clamp_min(longest))
    return to_rows(field[None])


def _on_features(field: Tensor) -> Tensor:
    """[3,d,h,w] in control voxels as (2d,2h,2w,3) in the features'."""
    return to_rows(2 * F.interpolate(field[None], scale_factor=2, mode="trilinear", align_corners=False))


def _solved(matrix: Tensor, right: Tensor, stiffness: float, damping: float) -> Tensor:
    """The solution [3,d,h,w] of (matrix + stiffness ∇⁴ + damping) u = right, nearly."""

    def applied(u: Tensor) -> Tensor:
        return _times(matrix, u) + stiffness * _bending(u) + damping * u

    blocks = matrix.clone()
    blocks[:3] += stiffness * SQUARED_LAPLACIAN_DIAGONAL + damping
    return _conjugate_gradients(applied, _inverse(blocks), right)


def _conjugate_gradients(applied: Callable[[Tensor], Tensor], inverse: Tensor, right: Tensor) -> Tensor:
    solution, residual = torch.zeros_like(right), right.clone()
    scaled = _times(inverse, residual)
    direction, product = scaled, (residual * scaled).sum()
    for _ in range(SOLVER_ROUNDS):
        image = applied(direction)
        # nothing is left to solve where both are 0
        length = product / (direction * image).sum().clamp_min(TINY)
        solution.add_(length * direction)
        residual.sub_(length * image)
        scaled = _times(inverse, residual)
        before, product = product, (residual * scaled).sum()
        direction = scaled + (product / before.clamp_min(TINY)) * direction
    return solution


def _bending(field: Tensor) -> Tensor:
    """∇⁴ of [C,d,h,w]: the bending energy's gradient."""
    return _laplacian(_laplacian(field))


def _laplacian(field: Tensor) -> Tensor:
    """Sum of the second differences along the three axes; beyond the border the field goes on level."""
    out = torch.zeros_like(field)
    for axis in (1, 2, 3):
        n = field.shape[axis] - 1
        rise = field.narrow(axis, 1, n) - field.narrow(axis, 0, n)
        out.narrow(axis, 0, n).add_(rise)
        out.narrow(axis, 1, n).sub_(rise)
    return out


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Symmetric 3 x 3 matrices [6,…] times vectors [3,…]."""
    a, b, c, d, e, f = matrix
    x, y, z = vector
    return torch.stack([a * x + d * y + e * z, d * x + b * y + f * z, e * x + f * y + c * z])


def _inverse(matrix: Tensor) -> Tensor:
    """Of symmetric positive definite 3 x 3 matrices [6,…], by their adjugates."""
    *entries, determinant = adjugate(matrix)
    return torch.stack(entries).div_(determinant.clamp_min(TINY))
