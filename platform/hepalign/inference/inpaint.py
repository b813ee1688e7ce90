"""iCT and coarse probe mask to inpainted CT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepalign.cases.placing import covering_grid
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import ct_to_unit, unit_to_ct
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.tensors import device_of
from hepalign.nets.fill import base_image
from hepalign.nets.precision import autocast
from hepalign.nets.unet import InpaintingNetConfig
from hepalign.transform.warp import Box, bounding_box

# What the network sees around the hole: enough for the rim's texture and the harmonisation, little to compute.
MARGIN_MM = 24.0
# An iCT coarser than the network's grid is not filled much more finely than it is: on voxels of this share of its
# least spacing. Measured at 3.3 to 4.5 mm (five phantoms, two pairs of a real CT): RMSE in the hole 50.8 for 52.5 and
# 18.5 for 18.1 HU, in a third of the time.
COARSE_SHARE = 0.85
FAILED = "the inpainting network gave no finite values: the hole holds the smooth fill that it starts from"


@dataclass(frozen=True)
class Inpainted:
    """The iCT without the probe.

    Args:
        image: HU, float32, on the iCT's grid; outside `mask` equal to the iCT bit for bit (as float32).
        mask: bool, the voxels that are synthetic.
        warnings: what its reader should know: a network that failed.
    """

    image: Volume
    mask: Volume
    warnings: tuple[str, ...] = ()


def inpaint(bundle: Bundle, ict: Volume, probe_mask: Volume, prior: Volume | None = None) -> Inpainted:
    """Fill the hole; only its box and a margin are computed.

    A network whose values are not finite is left out, with a warning: a hole must not hold what looks like a reading.

    Args:
        bundle: the release.
        ict: HU.
        probe_mask: on the iCT's grid, True over probe and artefact.
        prior: the pCT roughly aligned, HU, on the iCT's grid; NaN where it does not reach.

    Raises:
        BadInputError: `grid_mismatch` when mask or prior stand on another grid, `empty_mask` for a mask without voxels.
    """
    for name, volume in (("the probe mask", probe_mask), ("the prior", prior)):
        if volume is not None and not volume.geometry.same_grid(ict.geometry):
            raise BadInputError(f"{name} is not on the iCT's grid; resample it there first", code="grid_mismatch")
    box, hole = box_around(probe_mask), probe_mask.as_mask()
    filled, warnings = _fill(bundle, ict.crop(box), hole[box], None if prior is None else prior.crop(box))
    image = ict.as_float().copy()
    image[box] = np.where(hole[box], filled, image[box])
    return Inpainted(ict.with_data(image), ict.with_data(hole), warnings)


def _fill(
    bundle: Bundle, ict: Volume, hole: NDArray[np.bool_], prior: Volume | None
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """HU at every voxel of the region, and warnings."""
    net = bundle.networks["inpainting"]
    config = cast("InpaintingNetConfig", net.config)
    grid = ict.geometry if config.spacing_mm is None else _fill_grid(ict.geometry, config.spacing_mm)
    device, low = device_of(net), config.window_hu[0]

    def unit(volume: Volume) -> Tensor:
        hu = resample(volume, grid, fill=low).as_float()
        return torch.from_numpy(ct_to_unit(hu, config.window_hu))[None, None].to(device)

    def share(mask: NDArray[np.bool_]) -> Tensor:
        """How much of each voxel the mask covers."""
        read = resample(ict.with_data(mask.astype(np.float32)), grid, fill=0.0)
        return torch.from_numpy(read.as_float())[None, None].to(device)

    # A voxel is valid only where no part of what it was interpolated from lies in the hole.
    mask = ((share(hole) == 0) & (share(np.ones_like(hole)) > 0)).float()
    inputs = [unit(ict) * mask, mask]
    if config.prior and prior is not None:
        known = np.isfinite(prior.as_float())
        shown = prior.with_data(np.where(known, prior.as_float(), low).astype(np.float32))
        inputs += [unit(shown), (share(known) > 0.999).float()]
    with torch.inference_mode(), autocast(device):
        result, _ = net(*inputs)
        failed = not torch.isfinite(result).all()
        if failed:
            result = base_image(*inputs)
        result = inputs[0] + (1 - mask) * result.clamp(-1, 1)
    hu = unit_to_ct(result[0, 0].cpu().numpy(), config.window_hu)
    return resample(Volume(hu, grid), ict.geometry).as_float(), (FAILED,) if failed else ()


def _fill_grid(ict: Geometry, spacing_mm: float) -> Geometry:
    return covering_grid(ict, max(spacing_mm, COARSE_SHARE * min(ict.spacing_mm)))


def box_around(probe_mask: Volume) -> Box:
    """The hole's box and the margin that the network sees around it: all that `inpaint` reads of an image.

    Raises:
        BadInputError: `empty_mask` for a mask without voxels.
    """
    box = bounding_box(probe_mask.as_mask())
    if box is None:
        raise BadInputError("the probe mask holds no voxel: there is nothing to inpaint", code="empty_mask")
    slices = []
    grid = probe_mask.geometry
    for side, length, spacing_mm in zip(box, grid.shape, grid.spacing_mm, strict=True):
        margin = int(np.ceil(MARGIN_MM / spacing_mm))
        slices.append(slice(max(side.start - margin, 0), min(side.stop + margin, length)))
    return slices[0], slices[1], slices[2]
