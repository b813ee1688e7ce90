"""The two networks of a 3D CycleGAN: a residual generator and a patch discriminator (Zhu et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hepalign.image.intensity import CT_WINDOW_HU


class GeneratorConfig(BaseModel):
    """The shape of a generator and the images it was trained on.

    Args:
        width: channels at full resolution; twice at one half, four times at one quarter.
        blocks: residual blocks at one quarter.
        spacing_mm: the isotropic voxel size the network knows; None for the image's own grid.
        patch: voxels of a training patch; whole volumes are run in windows of this size.
        window_hu: the HU range that is [-1, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=16, ge=1)
    blocks: int = Field(default=6, ge=0)
    spacing_mm: float | None = None
    patch: tuple[int, int, int] = (48, 48, 48)
    window_hu: tuple[float, float] = CT_WINDOW_HU


class DiscriminatorConfig(BaseModel):
    """The shape of a discriminator: `width` channels after the first layer, doubled by each of the two after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=16, ge=1)


class ResNetGenerator(nn.Module):
    """Two halvings, residual blocks, two doublings, with instance norm; long additive skips keep edges in place.

    The last layer also sees the input image and features that were not normalised, since instance norm forgets a
    patch's level, and HU are levels.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Sequential(_convolution(1, width), nn.LeakyReLU(0.1))
        self.down1 = _layer(width, 2 * width, stride=2)
        self.down2 = _layer(2 * width, 4 * width, stride=2)
        self.blocks = nn.Sequential(*(_Residual(4 * width) for _ in range(config.blocks)))
        self.up1 = _layer(4 * width, 2 * width)
        self.up2 = _layer(2 * width, width)
        self.head = _convolution(2 * width + 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 1, D, H, W] in [-1, 1] of one modality to the other, float32."""
        stem = self.stem(image)
        half = self.down1(stem)
        quarter = self.blocks(self.down2(half))
        half = half + self.up1(F.interpolate(quarter, half.shape[2:]))
        full = self.up2(F.interpolate(half, stem.shape[2:]))
        return torch.tanh(self.head(torch.cat([full, stem, image], dim=1)).float())


class PatchDiscriminator(nn.Module):
    """Three layers of stride 2, 2, 1 and a judgement for every patch (3D PatchGAN, Isola et al. 2017)."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.layers = nn.Sequential(
            nn.Conv3d(1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.InstanceNorm3d(2 * width, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv3d(2 * width, 4 * width, 3, padding=1, bias=False),
            nn.InstanceNorm3d(4 * width, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv3d(4 * width, 1, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """A judgement per patch, [B, 1, D/4, H/4, W/4]: 1 for real."""
        judgement: Tensor = self.layers(image)
        return judgement


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _layer(width, width)
        self.second = nn.Sequential(_convolution(width, width, bias=False), nn.InstanceNorm3d(width, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.second(self.first(x))
        return changed


def _convolution(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, padding_mode="replicate", bias=bias)


def _layer(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _convolution(inputs, outputs, stride=stride, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.1),
    )
