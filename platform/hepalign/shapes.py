"""Names of tensor axes and the aliases that use them.

B batch, C channels, D H W the three voxel axes *in array order* (i, j, k of nibabel), N points.
Volumes are numpy arrays `D H W`; tensors are `B C D H W`. A displacement in numpy is `D H W 3`
(millimetres, world RAS); in a network it is `B 3 D H W` (voxels of that grid, array order).
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor

Array3 = Float[ndarray, "D H W"]
Mask3 = Bool[ndarray, "D H W"]
Vectors3 = Float32[ndarray, "D H W 3"]
Points = Float[ndarray, "N 3"]
Affine = Float[ndarray, "4 4"]
Image = Float[Tensor, "B C D H W"]
OneChannel = Float[Tensor, "B 1 D H W"]
VoxelField = Float[Tensor, "B 3 D H W"]
