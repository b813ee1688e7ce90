"""Partial convolution and the inpainting U-Net made of it (Liu et al. 2018, arXiv 1804.07723, in 3D).

The mask of every group of channels is one channel, so that its window sum is a box filter, not a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepalign.nets.fill import valid_mask
from hepalign.nets.precision import conv3d
from hepalign.nets.unet import INPUT_SCALE, InpaintingNetConfig, finished, output_layer

Group = tuple[Tensor, Tensor]  # features [B, C, D, H, W] and their mask [B, 1, D, H, W], 1 where valid


class PartialConv3d(nn.Module):
    """x' = W^T (X * M) sum(1) / sum(M) + b where sum(M) > 0, else 0; m' = 1 where sum(M) > 0 (Liu et al., eq. 1-2).

    Several groups of channels, each with a mask of its own, are concatenated: sum(1) = C k^3 and sum(M) runs over all
    their channels. The prior is another matter: its mask is (nearly) all ones and would close the hole at once, so it
    is normalised by its own mask alone, has no part in the update, and shows only where it is known:
    x' = W1^T (X * M) sum(1) / sum(M) + W2^T (P * Mp) sum(1) / sum(Mp) + b.

    Args:
        channels: the number of channels of each group.
        outputs: channels that come out.
        prior_channels: channels of the prior's features, 0 without.
        bias: whether b is learned (not needed before a batch norm).
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        prior_channels: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.kernel, self.stride = kernel, stride
        total = sum(self.channels) + prior_channels
        weight = torch.empty(outputs, total, kernel, kernel, kernel)
        nn.init.kaiming_normal_(weight, a=0.1, nonlinearity="leaky_relu")
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last_3d))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, groups: Sequence[Group], prior: Group | None = None) -> Group:
        """The features and the updated mask [B, 1, ...] of these groups; at voxels without any input both are 0."""
        if tuple(x.shape[1] for x, _ in groups) != self.channels:
            raise ValueError(f"expected groups of {self.channels} channels, got {[x.shape[1] for x, _ in groups]}")
        count = sum(self.channels)
        ratio, updated = self._normalisation([(mask, x.shape[1]) for x, mask in groups])
        weight = self.weight if prior is None else self.weight[:, :count]
        out = self._convolve([_masked(x, mask) for x, mask in groups], weight, ratio)
        shown = updated
        if prior is not None:
            prior_ratio, known = self._normalisation([(prior[1], prior[0].shape[1])])
            out = out + self._convolve([_masked(*prior)], self.weight[:, count:], prior_ratio)
            shown = torch.maximum(updated, known)
        if self.bias is not None:
            out = torch.addcmul(out, self.bias.to(out.dtype).view(1, -1, 1, 1, 1), shown.to(out.dtype))
        return out, updated

    def _convolve(self, masked: list[Tensor], weight: Tensor, ratio: Tensor) -> Tensor:
        features = torch.cat(masked, dim=1) if len(masked) > 1 else masked[0]
        around = self.kernel // 2
        convolved = conv3d(features, weight, stride=(self.stride,) * 3, padding=(around,) * 3)
        # In place: the backward pass of a convolution does not need what it gave.
        return convolved.mul_(ratio.to(convolved.dtype))

    def _normalisation(self, masks: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """sum(1) / sum(M) (0 where sum(M) is 0) and the updated mask, float32: the sums reach C k^3."""
        with torch.no_grad(), torch.autocast(masks[0][0].device.type, enabled=False):
            parts = [self._box(mask.float()) for mask, _ in masks]
            if len(parts) == 1:
                sums, ones = parts[0], self.kernel**3
            else:
                sums = reduce(torch.add, [part.mul_(count) for part, (_, count) in zip(parts, masks, strict=True)])
                ones = self.kernel**3 * sum(count for _, count in masks)
            updated = sums.clamp_max(1.0)
            return torch.div(updated, sums.clamp_min_(1.0)).mul_(ones), updated

    def _box(self, mask: Tensor) -> Tensor:
        """The sum over each window (zero outside the grid), one axis after another."""
        reach = self.kernel // 2
        mask = F.pad(mask, (reach,) * 6)
        for axis in (2, 3, 4):
            windows = (mask.shape[axis] - self.kernel) // self.stride + 1
            spread = (windows - 1) * self.stride + 1
            every = [slice(None)] * 5
            every[axis] = slice(None, None, self.stride)
            shifted = (mask.narrow(axis, start, spread)[tuple(every)] for start in range(1, self.kernel))
            mask = reduce(torch.Tensor.add_, shifted, mask.narrow(axis, 0, spread)[tuple(every)].clone())
        return mask


class PConvUNet(nn.Module):
    """The paper's inpainting network: a 3D U-Net of partial convolutions whose mask shrinks level by level.

    Encoder: stride-2 partial convolutions with batch norm. Decoder: features and masks enlarged (nearest) and
    concatenated with the encoder's, down to the input image itself. With a prior, an encoder of half the widths runs
    over it under the prior's own mask and joins every level of the decoder as the separately normalised group.
    """

    def __init__(self, config: InpaintingNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        skips = (1, *widths[:-1])
        prior_widths = tuple(width // 2 for width in widths[:-1]) if config.prior else ()
        self.encoder = nn.ModuleList(_Level([a], b, config.norm, stride=2) for a, b in zip(skips, widths, strict=True))
        self.prior_encoder = nn.ModuleList(
            _Level([a], b, config.norm, stride=2) for a, b in zip((1, *prior_widths), prior_widths, strict=False)
        )
        priors = (1, *prior_widths) if config.prior else (0,) * len(widths)
        outputs = (config.head_width, *widths[:-1])
        self.decoder = nn.ModuleList(
            _Level([deep, skip], out, config.norm if level else "none", prior_channels=prior)
            for level, (deep, skip, out, prior) in enumerate(zip(widths, skips, outputs, priors, strict=True))
        )
        self.head = output_layer(config)

    def forward(
        self, image: Tensor, mask: Tensor, prior: Tensor | None = None, prior_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction for every voxel, float32, and the final mask: 0 where the hole was too large to close.

        Args:
            image: [B, 1, D, H, W] in [-1, 1].
            mask: 1 where the image is valid.
            prior: as image; without one a network that takes priors sees it as unknown everywhere.
            prior_mask: 1 where the prior is known; all ones by default.
        """
        known = None if prior is None else valid_mask(prior, prior_mask)
        skips = _descend(self.encoder, (INPUT_SCALE * image * mask, mask))
        priors: list[Group | None] = [None] * len(skips)
        if self.config.prior:
            if prior is None or known is None:
                prior_group = torch.zeros_like(image), torch.zeros_like(mask)
            else:
                prior_group = INPUT_SCALE * prior * known, known
            priors = [*_descend(self.prior_encoder, prior_group)]
        group = skips.pop()
        for index in reversed(range(len(self.decoder))):
            skip = skips.pop()
            shape = skip[0].shape[2:]
            enlarged = F.interpolate(group[0], shape), F.interpolate(group[1], shape)
            group = self.decoder[index]([enlarged, skip], priors[index])
        output = finished(self.head, group[0], image, mask, prior, known, residual=self.config.residual)
        return output, group[1]


class _Level(nn.Module):
    """Partial convolution, batch norm, leaky ReLU."""

    def __init__(
        self, channels: Sequence[int], outputs: int, norm: str, *, stride: int = 1, prior_channels: int = 0
    ) -> None:
        super().__init__()
        self.convolution = PartialConv3d(
            channels, outputs, stride=stride, prior_channels=prior_channels, bias=norm == "none"
        )
        self.norm = nn.BatchNorm3d(outputs) if norm == "batch" else nn.Identity()

    def forward(self, groups: Sequence[Group], prior: Group | None = None) -> Group:
        features, mask = self.convolution(groups, prior)
        return F.leaky_relu(self.norm(features), 0.1, inplace=True), mask


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """X * M, in the type that the convolution will take anyway: half the bytes under autocast."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    # A converted copy is ours to change.
    return x * mask.to(dtype) if x.dtype == dtype else x.to(dtype).mul_(mask.to(dtype))


def _descend(levels: nn.ModuleList, group: Group) -> list[Group]:
    """The group at every level, the input first."""
    found = [group]
    for level in levels:
        found.append(level([found[-1]]))
    return found
