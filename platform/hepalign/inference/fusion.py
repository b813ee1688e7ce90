"""What the coarse mask still shows, brought into the hole's fill.

A box or a polygon covers far more tissue than artefact (ADR 0012), but a fill from the patient's own pCT is free of
streaks. The two fail at different places: the fill is wrong where something with an edge stands a few millimetres
off, the iCT is wrong by its streaks, everywhere about the same. Each voxel takes their mean, weighted as two
measurements of the same thing are: by the inverse of their variances (ADR 0014).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hepalign.image.volume import Volume
from hepalign.inference.workgrid import resized

# How far off the fill's edges stand, and what streaks do to a voxel; flat optima on development pairs (ADR 0014).
MISALIGNED_MM = 2.8
STREAKS_HU = 120.0
# Hardly any bone is as bright; what touches metal holds a part of it.
METAL_HU = 800.0
# Beyond this, lung and bone differ from soft tissue by more than anyone looks at in the hole.
WINDOW_HU = (-250.0, 450.0)


def fuse(ict: Volume, hole: Volume, filled: Volume) -> Volume:
    """The fill, drawn towards what the iCT shows wherever the fill may be misaligned and no metal is near.

    Args:
        ict: HU, any spacing.
        hole: bool, on its grid.
        filled: HU, on its grid; the result differs from it in the hole alone.
    """
    shape, spacing_mm = ict.geometry.shape, ict.geometry.spacing_mm
    seen, base = _tensor(ict), _tensor(filled)
    inside = torch.from_numpy(hole.as_mask())[None, None]
    # edges are looked for at one resolution, whatever the image's: a fine one's noise has slopes too
    coarse = [max(1, min(n, round(n * s / MISALIGNED_MM))) for n, s in zip(shape, spacing_mm, strict=True)]
    steps_mm = [n * s / m for n, s, m in zip(shape, spacing_mm, coarse, strict=True)]
    slope = _slope(resized(base.clamp(*WINDOW_HU), (coarse[0], coarse[1], coarse[2])), steps_mm)
    error = (MISALIGNED_MM * F.max_pool3d(slope, 3, stride=1, padding=1)).square()
    weight = resized(error / (error + STREAKS_HU**2), shape) * (inside & ~_near_metal(seen, inside, spacing_mm))
    drawn = base + weight * (seen.clamp(*WINDOW_HU) - base.clamp(*WINDOW_HU))
    return filled.with_data(drawn[0, 0].numpy())


def _tensor(volume: Volume) -> Tensor:
    return torch.from_numpy(volume.as_float().copy())[None, None]


def _slope(image: Tensor, steps_mm: list[float]) -> Tensor:
    """The gradient's length, HU/mm: central differences, the border's value outside."""
    padded, squared = F.pad(image, [1] * 6, mode="replicate"), torch.zeros_like(image)
    for axis, step_mm in enumerate(steps_mm):
        line = padded
        for other in {0, 1, 2} - {axis}:
            line = line.narrow(other + 2, 1, image.shape[other + 2])
        n = image.shape[axis + 2]
        squared += ((line.narrow(axis + 2, 2, n) - line.narrow(axis + 2, 0, n)) / (2 * step_mm)).square()
    return squared.sqrt()


def _near_metal(seen: Tensor, inside: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """The hole's metal and what lies next to it along an axis."""
    metal = ((seen > METAL_HU) & inside).float()
    near = metal
    for axis, step_mm in enumerate(spacing_mm):
        reach, kernel, padding = max(1, round(MISALIGNED_MM / step_mm)), [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        near = torch.maximum(near, F.max_pool3d(metal, kernel, stride=1, padding=padding))
    return near > 0
