"""Partial 3D convolution next to plain 3D convolution, and next to one that convolves the full mask.

Usage: python benchmarks/partial_conv.py [--device cuda] [--channels 32] [--size 48]
Peer: the multi-channel form of Liu et al.'s published description, whose mask has one channel a feature channel and
is convolved with a kernel of ones. No bias, as before a batch norm. One thread on the CPU; bfloat16 where the machine
gains by it; channels-last.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepalign.nets.partial_conv import PartialConv3d
from hepalign.nets.precision import autocast, channels_last
from timing import interleaved, ratio


class FullMaskConv3d(nn.Module):
    """x' = W^T (X * M) sum(1) / sum(M) by two convolutions over all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.register_buffer("ones", torch.ones(channels, channels, 3, 3, 3))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features and mask [B, C, D, H, W]."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            sums = F.conv3d(mask, self.ones, padding=1)
            updated = (sums > 0).float()
            ratio = updated * self.ones[0].numel() / sums.clamp_min(1)
        out = self.convolution(x * mask) * ratio
        return out, updated


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=48)
    words = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    channels, device = words.channels, torch.device(words.device)
    shape = (1, channels, words.size, words.size, words.size)
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last_3d).requires_grad_()
    mask = torch.ones(1, 1, *shape[2:], device=device)
    mask[..., 10:30, 12:34, 8:28] = 0
    partial = PartialConv3d([channels], channels, bias=False).to(device)
    full = channels_last(FullMaskConv3d(channels).to(device))
    plain = channels_last(nn.Conv3d(channels, channels, 3, padding=1, bias=False).to(device))
    full.convolution.weight.data.copy_(partial.weight.data)
    whole_mask = mask.expand(shape).contiguous(memory_format=torch.channels_last_3d)

    first, second = partial([(x, mask)]), full(x, whole_mask)
    torch.testing.assert_close(first[0], second[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first[1], second[1][:, :1])

    def run(step: bool, kind: str) -> None:
        with autocast(device):
            if kind == "plain":
                out = plain(x)
            elif kind == "partial":
                out, _ = partial([(x, mask)])
            else:
                out, _ = full(x, whole_mask)
        if step:
            out.float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    full_over_plain = "convolving the full mask over plain convolution"
    for step, word in ((False, "forward"), (True, "forward + backward")):
        with torch.set_grad_enabled(step):
            ways = {kind: lambda step=step, kind=kind: run(step, kind) for kind in ("partial", "plain", "full mask")}
            times = interleaved(ways)
        ratio(f"partial over plain 3D convolution, {word}", times, "partial", "plain", at_most=1.15)
        ratio(f"convolving the full mask over partial convolution, {word}", times, "full mask", "partial", at_least=2.5)
        # what a partial convolution without any cost of its own would reach
        ratio(f"{full_over_plain}, {word}", times, "full mask", "plain")


if __name__ == "__main__":
    main()
