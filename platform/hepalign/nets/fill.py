"""A smooth fill of holes by a pyramid of averages: where inpainting starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_fill(image: Tensor, mask: Tensor) -> Tensor:
    """The image with its holes filled by averages of the valid voxels around them (push-pull).

    Valid voxels are averaged level by level over 2 x 2 x 2 (push) until every cell holds one; on the way back each
    cell without a valid voxel takes the coarser level's trilinear value (pull). After Gortler et al. 1996,
    "The Lumigraph", section 3.3. Linear in the image and exact for constants.

    Args:
        image: [B, C, D, H, W]; what stands in the hole is not looked at.
        mask: [B, 1, D, H, W], 1 where valid. Where nothing is valid at all the fill is 0.

    Returns:
        float32 [B, C, D, H, W], equal to the image where the mask is 1.
    """
    image, mask = image.float(), mask.float()
    return _pull(image * mask, mask)


def base_image(image: Tensor, mask: Tensor, prior: Tensor | None = None, prior_mask: Tensor | None = None) -> Tensor:
    """What a residual network starts from, float32 [B, 1, D, H, W], without gradient.

    With a prior this is the prior plus the smooth fill of (image - prior) over the voxels where both are known, that
    is the prior harmonised with the image on the hole's rim; where the prior is not known, and without one, it is
    the smooth fill of the image.
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        plain = smooth_fill(image, mask)
        if prior is None or prior_mask is None:
            return plain
        both = mask.float() * prior_mask.float()
        harmonised = prior.float() + smooth_fill(image.float() - prior.float(), both)
        return torch.where((prior_mask > 0) & (both.amax(dim=(1, 2, 3, 4), keepdim=True) > 0), harmonised, plain)


def blurred(image: Tensor) -> Tensor:
    """What is left of an image [B, C, D, H, W] at a quarter of its resolution, on its own grid."""
    coarse = F.avg_pool3d(image, 4, ceil_mode=True, count_include_pad=False)
    return F.interpolate(coarse, image.shape[2:], mode="trilinear")


def valid_mask(image: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or all ones."""
    return torch.ones_like(image[:, :1]) if mask is None else mask


def _pull(weighted: Tensor, weight: Tensor) -> Tensor:
    """`weighted` is image x weight; weights lie in [0, 1]."""
    here = weighted / weight.clamp_min(1e-6)
    shape = weight.shape[2:]
    if max(shape) == 1:
        return here
    padding = [pad for size in reversed(shape) for pad in (0, size % 2)]
    coarse_weighted = F.avg_pool3d(F.pad(weighted, padding), 2) * 8
    coarse_weight = F.avg_pool3d(F.pad(weight, padding), 2) * 8
    share = coarse_weight.clamp_min(1.0)
    coarse = _pull(coarse_weighted / share, coarse_weight / share)
    # The coarse cells cover the padded grid: enlarge onto that, then cut the padding off.
    padded = [size + size % 2 for size in shape]
    fine = F.interpolate(coarse, padded, mode="trilinear")[:, :, : shape[0], : shape[1], : shape[2]]
    return torch.where(weight > 0, here, fine)
