from __future__ import annotations

import pytest
import torch
from torch import nn

from hepalign.nets.partial_conv import PartialConv3d
from hepalign.nets.precision import channels_last


def leave_nan_in_freed_memory() -> None:
    for size in (1 << 12, 1 << 14, 1 << 16, 1 << 18):
        torch.full((size,), torch.nan)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["plain", "partial"])
def test_weight_gradients_of_shallow_grids_are_right_in_bfloat16(kind: str, depth: int) -> None:
    """Two voxels deep, oneDNN's own padding gives NaN or garbage; a registration network meets that at 32 voxels."""
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 32, 3, padding=1) if kind == "plain" else PartialConv3d([16], 32)
    net = channels_last(nn.Sequential(layer))[0]
    image = torch.randn(1, 16, depth, 6, 6).contiguous(memory_format=torch.channels_last_3d)

    def gradient(reduced: bool) -> torch.Tensor:
        net.zero_grad()
        leave_nan_in_freed_memory()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            out = net(image) if kind == "plain" else net([(image, torch.ones_like(image[:, :1]))])[0]
        out.float().square().mean().backward()
        assert net.weight.grad is not None
        return net.weight.grad.clone()

    truth = gradient(False)
    assert float((gradient(True) - truth).norm() / truth.norm()) < 0.02
