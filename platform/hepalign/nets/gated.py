"""Gated convolution and contextual attention (Yu et al. 2018 arXiv 1801.07892, 2019 arXiv 1806.03589) in 3D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepalign.nets.unet import InpaintingNetConfig, MaskedUNet, level_channels

# Cosine similarities are sharpened by this before the softmax, as in the paper's code.
ATTENTION_SHARPNESS = 10.0


class GatedConv3d(nn.Module):
    """leaky_relu(features) * sigmoid(gate): the network learns where to trust its input (Yu et al. 2019, eq. 3)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, 2 * outputs, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, D, H, W] to [B, outputs, ...]."""
        features, gate = self.convolution(x).chunk(2, dim=1)
        gated: Tensor = F.leaky_relu(features, 0.1) * gate.sigmoid()
        return gated


class ContextualAttention(nn.Module):
    """Each voxel of the hole borrows features from the valid voxels that look alike (Yu et al. 2018, section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = GatedConv3d(2 * channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features [B, C, D, H, W] and mask [B, 1, D, H, W] (1 valid) to features; costs (D H W)^2, so go deep."""
        flat = x.float().flatten(2)
        valid = mask.float().flatten(2) > 0
        directions = F.normalize(flat, dim=1)
        alike = ATTENTION_SHARPNESS * directions.transpose(1, 2) @ directions
        # Where nothing is valid every voxel is open to all, or the softmax would divide 0 by 0.
        open_to = valid | ~valid.any(dim=2, keepdim=True)
        attention = alike.masked_fill(~open_to, float("-inf")).softmax(dim=2)
        borrowed = (attention @ flat.transpose(1, 2)).transpose(1, 2)
        completed = torch.where(valid, flat, borrowed).view_as(x).to(x.dtype)
        merged: Tensor = self.merge(torch.cat([x, completed], dim=1))
        return merged


class GatedUNet(MaskedUNet):
    """A 3D U-Net of gated convolutions with contextual attention two levels above the bottleneck's grid."""

    def __init__(self, config: InpaintingNetConfig) -> None:
        down, up = level_channels(config)
        super().__init__(config, (GatedConv3d(a, b, stride=2) for a, b in down), (GatedConv3d(a, b) for a, b in up))
        self.attention_level = min(len(config.widths), 3)
        self.attention = ContextualAttention(config.widths[self.attention_level - 1])

    def after(self, number: int, x: Tensor, mask: Tensor) -> Tensor:
        """Contextual attention at its level; a deep voxel is valid when it has seen any valid voxel."""
        if number != self.attention_level:
            return x
        attended: Tensor = self.attention(x, F.adaptive_max_pool3d(mask, x.shape[2:]))
        return attended
