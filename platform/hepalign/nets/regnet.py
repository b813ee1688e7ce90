"""The registration network: a two-level residual pyramid that predicts a stationary velocity.

After VoxelMorph (Dalca et al. 2018, arXiv 1805.04605), LapIRN's pyramid of residual velocities (Mok & Chung 2020,
arXiv 2006.16148) and PDD-Net's volumes of matches (Heinrich 2019, arXiv 1907.10931). Both images enter as MIND-SSC
and intensity at half resolution; level 1 works at a quarter, level 2 at a half; the caller upsamples to full
resolution, where only the warp is done.

What it predicts is what a coarse registration by Gauss-Newton (`inference.coarse.coarse_start`) has left over: the
moving features come in warped by that. Untrained it adds nothing.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hepalign.losses.similarity import MIND_CHANNELS, pooled_mind
from hepalign.transform.velocity import integrate
from hepalign.transform.warp import warp_tensor

# Squared differences of MIND-SSC are some hundredths: this sharpness tells a match from its neighbours, and the
# scale brings them to the size of the other features.
FIRST_SHARPNESS = 100.0
MATCH_SCALE = 20.0
SMOOTHING_PASSES = 2
# What the heads may say, in voxels of their level: two centimetres, then one. Unbounded, one bad step at a high rate
# gave velocities of hundreds of voxels, from whose gradients no training came back.
COARSE_LIMIT, FINE_LIMIT = 2.0, 2.0
SLAB_PLANES = 4


class RegNetConfig(BaseModel):
    """Widths and reach of `RegNet`.

    Attributes:
        encoder_channels: feature channels at half resolution; twice as many at a quarter.
        level_channels: channels of the coarse U-Net and of the fine refiner.
        coarse_reach: match volume's reach at a quarter resolution, voxels of that level.
        fine_reach: the same at half resolution.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder_channels: int = Field(16, ge=4)
    level_channels: int = Field(32, ge=8)
    coarse_reach: int = Field(2, ge=0, le=4)
    fine_reach: int = Field(1, ge=0, le=2)


def network_inputs(moving: Tensor, fixed: Tensor) -> Tensor:
    """What `RegNet` takes of unit-scale images [B,1,D,H,W]: [2B,13,D/2,H/2,W/2], the moving ones first.

    MIND-SSC and averaged intensity, float32.

    Raises:
        ValueError: when the shapes differ or are no multiples of 16.
    """
    if any(n % 16 for n in fixed.shape[2:]) or moving.shape != fixed.shape:
        raise ValueError(f"RegNet takes equal shapes in multiples of 16, got {moving.shape} and {fixed.shape}")
    images = torch.cat([moving, fixed]).float()
    return torch.cat([pooled_mind(images), F.avg_pool3d(images, 2)], 1)


class RegNet(nn.Module):
    """Maps `network_inputs` [2B,13,d,h,w] to a velocity [B,3,d,h,w] in voxels of that grid."""

    def __init__(self, config: RegNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or RegNetConfig()
        c, width = self.config.encoder_channels, self.config.level_channels
        self.encode_half = nn.Sequential(_conv(MIND_CHANNELS + 1, c), _conv(c, c))
        self.encode_quarter = nn.Sequential(_conv(c, 2 * c, stride=2), _conv(2 * c, 2 * c))
        coarse_costs = (2 * self.config.coarse_reach + 1) ** 3
        self.coarse = _CoarseUNet(coarse_costs + 4 * c, width)
        self.coarse_logits = _zero_head(width, coarse_costs)
        self.coarse_sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS))
        fine_costs = (2 * self.config.fine_reach + 1) ** 3
        self.fine = nn.Sequential(_conv(fine_costs + 2 * c + 3, width), _conv(width, width), _conv(width, width))
        self.fine_logits = _zero_head(width, fine_costs)
        self.fine_sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS))
        self.coarse_velocity = _velocity_head(width)
        self.fine_velocity = _velocity_head(width)
        # how much of what the matches say is taken, at each level: nothing before it has learned which to believe
        self.gains = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Warps, costs' inputs and velocities stay float32 under autocast."""
        batch = inputs.shape[0] // 2
        weight: Tensor = next(self.encode_half.parameters())
        features = self.encode_half(inputs.to(weight.dtype).contiguous(memory_format=torch.channels_last_3d))
        moving_half, fixed_half = features[:batch], features[batch:]
        quarter = self.encode_quarter(features)
        moving_quarter, fixed_quarter = quarter[:batch], quarter[batch:]

        reach = self.config.coarse_reach
        mind_half = inputs[:, :MIND_CHANNELS].float()
        mind = F.avg_pool3d(mind_half, 2)
        matches = match_volume(mind[:batch], mind[batch:], reach)
        context = self.coarse(_joined(MATCH_SCALE * matches, moving_quarter, fixed_quarter))
        logits = self.coarse_sharpness * matches + self.coarse_logits(context).float()
        learned_velocity = bounded(self.coarse_velocity(context).float(), COARSE_LIMIT)
        quarter_velocity = self.gains[0] * expected_offset(logits, reach) + learned_velocity

        reach = self.config.fine_reach
        # what the fine level sees is given: its gradient through the warp costs much and steers little (as in RAFT)
        moved = upsample_field(integrate(quarter_velocity.detach()))
        warped = warp_tensor(torch.cat([moving_half.float(), mind_half[:batch]], 1), moved)
        learned, carried = warped[:, :-MIND_CHANNELS], warped[:, -MIND_CHANNELS:]
        matches = match_volume(carried, mind_half[batch:], reach)
        velocity = upsample_field(quarter_velocity)
        context = self.fine(_joined(MATCH_SCALE * matches, learned, fixed_half, velocity.detach()))
        logits = self.fine_sharpness * matches + self.fine_logits(context).float()
        learned_velocity = bounded(self.fine_velocity(context).float(), FINE_LIMIT)
        return velocity + self.gains[1] * expected_offset(logits, reach) + learned_velocity


class _CoarseUNet(nn.Module):
    """Three levels at a quarter, an eighth and a sixteenth: context for what the cost volume cannot decide."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(_conv(channels, 2 * width, kernel=1), _conv(2 * width, width))
        self.down1 = nn.Sequential(_conv(width, 2 * width, stride=2), _conv(2 * width, 2 * width))
        self.down2 = nn.Sequential(_conv(2 * width, 2 * width, stride=2), _conv(2 * width, 2 * width))
        self.up1 = _conv(4 * width, 2 * width)
        self.up0 = nn.Sequential(_conv(3 * width, width), _conv(width, width))

    def forward(self, image: Tensor) -> Tensor:
        first = self.enter(image)
        second = self.down1(first)
        third = self.down2(second)
        second = self.up1(torch.cat([_double(third), second], 1))
        result: Tensor = self.up0(torch.cat([_double(second), first], 1))
        return result


def match_volume(moving: Tensor, fixed: Tensor, reach: int) -> Tensor:
    """Minus the mean squared difference of MIND-SSC at each offset, averaged over 3³ voxels: [B,(2 reach+1)³,D,H,W].

    It has no gradient; slab by slab, so that scratch memory stays in the cache.
    """
    padded = F.pad(moving, [reach] * 6, mode="replicate").detach()
    depth, height, width = fixed.shape[2:]
    offsets = list(product(range(2 * reach + 1), repeat=3))
    costs = fixed.new_empty(fixed.shape[0], len(offsets), depth, height, width)
    for start in range(0, depth, SLAB_PLANES):
        stop = min(depth, start + SLAB_PLANES)
        target = fixed[:, :, start:stop].detach()
        scratch = torch.empty_like(target)
        for channel, (i, j, k) in enumerate(offsets):
            source = padded[:, :, start + i : stop + i, j : j + height, k : k + width]
            torch.sub(target, source, out=scratch).square_()
            torch.sum(scratch, 1, out=costs[:, channel, start:stop])
    return _box(costs.mul_(-1 / fixed.shape[1]))


def expected_offset(logits: Tensor, reach: int) -> Tensor:
    """The mean offset (voxels, [B,3,D,H,W]) under a softmax over the offsets within ±reach, after PDD-Net.

    It is smoothed, for where nothing can be told apart the neighbours know better.
    """
    steps = torch.arange(-reach, reach + 1, dtype=logits.dtype, device=logits.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1)
    mean = torch.einsum("bodhw,co->bcdhw", logits.softmax(1), offsets)
    for _ in range(SMOOTHING_PASSES):
        mean = _box(mean)
    return mean


def bounded(velocity: Tensor, limit: float) -> Tensor:
    """The velocity, unchanged while it is small and never beyond ±limit."""
    return limit * torch.tanh(velocity / limit)


def _box(image: Tensor) -> Tensor:
    """The mean over 3³ voxels, the border's value outside."""
    for axis in (2, 3, 4):
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = 1
        padded = F.pad(image, padding, mode="replicate")
        length = image.shape[axis]
        image = (padded.narrow(axis, 0, length) + image).add_(padded.narrow(axis, 2, length))
    return image / 27


def upsample_field(field: Tensor) -> Tensor:
    """A voxel field or velocity [B,3,d,h,w] on the grid of twice the shape, in that grid's voxels."""
    return 2 * F.interpolate(field, scale_factor=2, mode="trilinear", align_corners=False)


def _joined(*parts: Tensor) -> Tensor:
    """The parts as one [B,C,D,H,W] in the memory order that convolutions like, in the least precise part's type."""
    kind = min((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return torch.cat([part.to(kind, memory_format=torch.channels_last_3d) for part in parts], 1)


def _conv(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2), nn.LeakyReLU(0.1, inplace=True)
    )


def _velocity_head(width: int) -> nn.Conv3d:
    head = nn.Conv3d(width, 3, 3, padding=1)
    # starts at the identity transform
    nn.init.normal_(head.weight, std=1e-4)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def _zero_head(width: int, outputs: int) -> nn.Conv3d:
    """Adds nothing until it has learned."""
    head = nn.Conv3d(width, outputs, 1)
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def _double(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="nearest")
