"""Stationary velocity fields: the displacement is the flow after unit time."""

from __future__ import annotations

from torch import Tensor

from hepalign.shapes import VoxelField
from hepalign.transform.warp import warp_tensor

DEFAULT_SQUARINGS = 7


def integrate(velocity: VoxelField, steps: int = DEFAULT_SQUARINGS) -> VoxelField:
    """Scaling and squaring (Arsigny et al. 2006; Dalca et al. 2018), in float32; differentiable.

    Starts from v / 2^steps and composes the small displacement with itself `steps` times:
    u ← u + u∘(id + u). Outside the grid the border's displacement holds.

    Args:
        velocity: [B, 3, D, H, W], voxels per unit time, array order.
        steps: number of squarings; 7 keeps the first step under a tenth of a voxel for 12-voxel displacements.

    Returns:
        the displacement in voxels, float32 [B, 3, D, H, W]; minus the velocity gives its inverse.
    """
    displacement: Tensor = velocity.float() / 2**steps
    for _ in range(steps):
        displacement = displacement + warp_tensor(displacement, displacement)
    return displacement
