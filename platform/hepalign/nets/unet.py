"""Inpainting U-Nets without partial convolutions: the paper's "Conv", and the walk it shares with the gated one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hepalign.nets.fill import base_image, blurred, valid_mask

CT_INPAINTING_WINDOW_HU = (-200.0, 400.0)
# Noise is a hundredth of the window, an organ's contrast a tenth: unscaled, the image that joins the last decoder
# level would drown among features of unit variance.
INPUT_SCALE = 8.0


class InpaintingNetConfig(BaseModel):
    """The shape of an inpainting network and the images it was trained on.

    Args:
        widths: channels of the encoder's levels; each level halves the grid. A hole of n voxels across closes
            after L levels when n <= 2^(L+1) - 2 (kernels of 3), so five levels close 62 voxels.
        head_width: channels at full resolution.
        prior: whether the roughly aligned pCT is a second input; its encoder has half the widths.
        residual: predict the difference to a smooth fill of the hole (with a prior: to the harmonised prior) instead
            of the image itself (the paper's form).
        spacing_mm: the isotropic voxel size the network knows; None for the image's own grid.
        window_hu: the HU range that becomes [-1, 1].
        norm: batch norm at each level ("batch", frozen in the second phase) or none.
        extractor: a record of the features that the perceptual and style losses looked at in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] = (16, 32, 64, 64, 64)
    head_width: int = Field(default=8, ge=1)
    prior: bool = True
    residual: bool = True
    spacing_mm: float | None = None
    window_hu: tuple[float, float] = CT_INPAINTING_WINDOW_HU
    norm: Literal["batch", "none"] = "batch"
    extractor: str | None = None


class MaskedUNet(nn.Module):
    """The walk that plain and gated convolutions share: down and up over the masked image, the mask (and the prior).

    Args:
        config: the network's.
        encoder: a level for each width, from `input_channels` down; each halves the grid.
        decoder: a level for each width, finest first; each takes the coarser features and the encoder's beside them.
    """

    def __init__(self, config: InpaintingNetConfig, encoder: Iterable[nn.Module], decoder: Iterable[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.head = output_layer(config)

    def forward(
        self, image: Tensor, mask: Tensor, prior: Tensor | None = None, prior_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction for every voxel, float32, and the final mask (all ones: these networks know no holes).

        Args:
            image: [B, 1, D, H, W] in [-1, 1].
            mask: 1 where the image is valid.
            prior: as image; without one a network that takes priors sees it as unknown everywhere.
            prior_mask: 1 where the prior is known; all ones by default.
        """
        known = None if prior is None else valid_mask(prior, prior_mask)
        x = torch.cat([INPUT_SCALE * image * mask, mask], dim=1)
        if self.config.prior:
            if prior is None or known is None:
                prior, known = torch.zeros_like(image), torch.zeros_like(mask)
            x = torch.cat([x, INPUT_SCALE * prior * known, known], dim=1)
        skips = [x]
        for number, level in enumerate(self.encoder, start=1):
            x = self.after(number, level(x), mask)
            skips.append(x)
        x = skips.pop()
        for level in reversed(self.decoder):
            skip = skips.pop()
            x = level(torch.cat([F.interpolate(x, skip.shape[2:]), skip], dim=1))
        output = finished(self.head, x, image, mask, prior, known, residual=self.config.residual)
        return output, torch.ones_like(mask)

    def after(self, number: int, x: Tensor, mask: Tensor) -> Tensor:
        """What follows the encoder's level `number` (from 1); nothing here."""
        return x


class ConvUNet(MaskedUNet):
    """A 3D U-Net of plain convolutions."""

    def __init__(self, config: InpaintingNetConfig) -> None:
        down, up = level_channels(config)
        encoder = (_block(a, b, config.norm, stride=2) for a, b in down)
        decoder = (_block(a, b, config.norm if level else "none", stride=1) for level, (a, b) in enumerate(up))
        super().__init__(config, encoder, decoder)


def level_channels(config: InpaintingNetConfig) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Channels in and out of a `MaskedUNet`'s encoder and decoder levels, finest first."""
    widths = config.widths
    skips = (4 if config.prior else 2, *widths[:-1])
    outputs = (config.head_width, *widths[:-1])
    down = list(zip(skips, widths, strict=True))
    return down, [(deep + skip, out) for deep, skip, out in zip(widths, skips, outputs, strict=True)]


def finished(
    head: nn.Module,
    features: Tensor,
    image: Tensor,
    mask: Tensor,
    prior: Tensor | None,
    known: Tensor | None,
    *,
    residual: bool,
) -> Tensor:
    """I_out at every voxel, float32: what the head gives, or the base and what the head says is missing in it.

    A residual head has two outputs: what the base misses in the hole, and what a blurred base misses where the
    image is seen. The second is what L_valid judges: it keeps the features alive, since in the hole "nothing is
    missing" is where a residual under an L1 loss settles at once and stays (measured: no change in 150 steps).
    It sees the base's own detail too: how much of a noisy prior to keep is then a matter of one weight.
    """
    if not residual:
        prediction: Tensor = head(features).float()
        return prediction
    base = base_image(image, mask, prior, known)
    detail = INPUT_SCALE * (base - F.avg_pool3d(base, 3, 1, 1, count_include_pad=False))
    missing = head(torch.cat([features, detail.to(features.dtype)], dim=1)).float()
    shown = torch.zeros_like(base) if prior is None or known is None else prior.float() * known
    seen = shown + blurred(base - shown) + missing[:, 1:]
    return torch.where(mask > 0, seen, base + missing[:, :1])


def output_layer(config: InpaintingNetConfig) -> nn.Conv3d:
    """The last 1 x 1 x 1 convolution; small at the start when it predicts a residual, so that the fill is kept."""
    if not config.residual:
        return nn.Conv3d(config.head_width, 1, 1)
    layer = nn.Conv3d(config.head_width + 1, 2, 1, bias=False)
    nn.init.normal_(layer.weight, std=3e-3)
    return layer


def _block(inputs: int, outputs: int, norm: str, *, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=norm == "none")]
    if norm == "batch":
        layers.append(nn.BatchNorm3d(outputs))
    return nn.Sequential(*layers, nn.LeakyReLU(0.1, inplace=True))
