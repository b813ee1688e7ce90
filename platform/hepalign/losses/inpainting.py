"""The five losses of inpainting by partial convolutions (Liu et al. 2018, arXiv 1804.07723, eq. 2-7, in 3D)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Extractor = Callable[[Tensor], Sequence[Tensor]]


class InpaintingWeights(BaseModel):
    """L_total = L_valid + 6 L_hole + 0.05 L_perceptual + 120 (L_style_out + L_style_comp) + 0.1 L_tv."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    valid: float = Field(default=1.0, ge=0)
    hole: float = Field(default=6.0, ge=0)
    perceptual: float = Field(default=0.05, ge=0)
    style: float = Field(default=120.0, ge=0)
    tv: float = Field(default=0.1, ge=0)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms `valid hole perceptual style_out style_comp tv`."""
        pixels = self.valid * terms["valid"] + self.hole * terms["hole"] + self.tv * terms["tv"]
        style = terms["style_out"] + terms["style_comp"]
        return pixels + self.perceptual * terms["perceptual"] + self.style * style


def compose(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """I_comp: the target where it is valid, the output in the hole."""
    return target * mask + output * (1 - mask)


def valid_loss(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_valid = ||M (I_out - I_gt)||_1 / N, N the number of all voxels."""
    return (mask * (output - target)).abs().mean()


def hole_loss(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_hole = ||(1 - M) (I_out - I_gt)||_1 / N, N the number of all voxels."""
    return ((1 - mask) * (output - target)).abs().mean()


def perceptual_loss(output: Sequence[Tensor], composed: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Sum over layers p of ||Psi_p(out) - Psi_p(gt)||_1 / N_p + ||Psi_p(comp) - Psi_p(gt)||_1 / N_p."""
    layers = zip(output, composed, target, strict=True)
    return torch.stack([F.l1_loss(out, gt) + F.l1_loss(comp, gt) for out, comp, gt in layers]).sum()


def gram(features: Tensor) -> Tensor:
    """K_p Psi^T Psi with K_p = 1 / (C H W), or 1 / (C D H W) for 3D features; float32 [B, C, C]."""
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def style_loss(features: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Sum over layers of 1 / C_p^2 ||K_p (Psi^T Psi - Psi_gt^T Psi_gt)||_1, mean over the batch."""
    layers = zip(features, target, strict=True)
    # The mean over the C x C entries of the difference is the 1 / C_p^2: it is not applied again.
    return torch.stack([F.l1_loss(gram(mine), gram(gt)) for mine, gt in layers]).sum()


def total_variation_loss(composed: Tensor, mask: Tensor) -> Tensor:
    """Neighbours' differences along the three axes where both lie in the hole grown by one voxel, over N of I_comp."""
    region = F.max_pool3d(1 - mask.float(), 3, stride=1, padding=1)
    total = composed.new_zeros(())
    for axis in (2, 3, 4):
        count = composed.shape[axis] - 1
        first, second = composed.narrow(axis, 0, count), composed.narrow(axis, 1, count)
        both = region.narrow(axis, 0, count) * region.narrow(axis, 1, count)
        total = total + (both * (second - first).abs()).sum()
    return total / composed.numel()


def inpainting_terms(
    output: Tensor,
    target: Tensor,
    mask: Tensor,
    extractor: Extractor,
    slices: Callable[[list[Tensor]], list[Tensor]],
) -> dict[str, Tensor]:
    """The five losses by name (style as its two parts), unweighted, float32.

    Args:
        output: the network's prediction for every voxel, [B, 1, D, H, W].
        target: the truth.
        mask: 1 where valid, 0 in the hole.
        extractor: Psi, from what `slices` gives to feature maps.
        slices: the same slices of each volume of a list (or the volumes themselves for a 3D extractor).
    """
    output, target, mask = output.float(), target.float(), mask.float()
    composed = compose(output, target, mask)
    out_slices, comp_slices, gt_slices = slices([output, composed, target])
    of_out, of_comp = extractor(out_slices), extractor(comp_slices)
    with torch.no_grad():
        of_target = extractor(gt_slices)
    return {
        "valid": valid_loss(output, target, mask),
        "hole": hole_loss(output, target, mask),
        "perceptual": perceptual_loss(of_out, of_comp, of_target),
        "style_out": style_loss(of_out, of_target),
        "style_comp": style_loss(of_comp, of_target),
        "tv": total_variation_loss(composed, mask),
    }
