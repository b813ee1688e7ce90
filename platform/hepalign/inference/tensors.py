"""Networks over whole volumes: overlapping windows, blended so that no seam shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Window = tuple[int, int, int]
# Windows that a network gets at once: alone, a small one falls back to a slow convolution on CPUs.
BATCH = 4


def device_of(net: nn.Module) -> torch.device:
    """Where the network's weights are."""
    return next(net.parameters()).device


def sliding_window(net: Callable[[Tensor], Tensor], image: Tensor, window: Window, overlap: float = 0.5) -> Tensor:
    """Run `net` over windows of a volume and blend what comes out by smooth weights that fall off to the borders.

    Args:
        net: [B, C, *window] to [B, K, *window].
        image: [1, C, D, H, W]; where it is smaller than the window it is padded by its border values.
        window: voxels.
        overlap: least share of a window that its neighbour also covers.

    Returns:
        float32 [1, K, D, H, W].
    """
    shape = image.shape[2:]
    padding = [
        pad for size, wide in zip(reversed(shape), reversed(window), strict=True) for pad in (0, max(wide - size, 0))
    ]
    padded = F.pad(image, padding, mode="replicate") if any(padding) else image
    weight = _blending(window, image.device)
    total: Tensor | None = None
    weights = torch.zeros_like(padded[:, :1])
    left = _windows(padded.shape[2:], window, overlap)
    while boxes := [(slice(None), slice(None), *box) for box in islice(left, BATCH)]:
        results = net(torch.cat([padded[box] for box in boxes])).float()
        if total is None:
            total = padded.new_zeros(1, results.shape[1], *padded.shape[2:], dtype=torch.float32)
        for box, result in zip(boxes, results, strict=True):
            total[box] += result * weight
            weights[box] += weight
    assert total is not None
    depth, height, width = shape
    return (total / weights)[:, :, :depth, :height, :width]


def _windows(shape: torch.Size, window: Window, overlap: float) -> Iterator[tuple[slice, ...]]:
    """Boxes that cover the shape, evenly spread along each axis."""
    axes = []
    for size, wide in zip(shape, window, strict=True):
        step = max(1, int(wide * (1 - overlap)))
        count = -(-(size - wide) // step) + 1
        starts = torch.linspace(0, size - wide, count).round().int().tolist()
        axes.append([slice(start, start + wide) for start in starts])
    yield from product(*axes)


def _blending(window: Window, device: torch.device) -> Tensor:
    """A raised cosine along each axis, [1, 1, *window]: positive everywhere, small at the borders."""
    weight = torch.ones(1, 1, 1, 1, 1, device=device)
    for axis, size in enumerate(window):
        places = (torch.arange(size, device=device) + 0.5) / size
        profile = torch.sin(torch.pi * places).square() + 1e-3
        weight = weight * profile.view([size if axis == other else 1 for other in range(-2, 3)])
    return weight
