"""Slices of tensors as pictures for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GAP_PIXELS = 2


def montage(images: Sequence[Tensor], samples: int = 2) -> NDArray[np.uint8]:
    """The middle axial and coronal slices of each image, side by side: a row per sample and orientation.

    Args:
        images: [B, 1, D, H, W] in [-1, 1] each, axes along x, y, z of the world (RAS): head up, anterior up.
        samples: how many of the batch to show.

    Returns:
        (rows, columns) uint8.
    """
    rows = []
    for sample in range(min(samples, images[0].shape[0])):
        for axis in (2, 1):
            planes = [image[sample, 0].float().cpu() for image in images]
            middle = planes[0].shape[axis] // 2
            rows.append(torch.cat([_framed(plane.select(axis, middle).T.flip(0)) for plane in planes], dim=1))
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=-1.0) for row in rows]
    grey = (torch.cat(padded).clamp(-1, 1) + 1) * 127.5
    return grey.round().to(torch.uint8).numpy()


def _framed(plane: Tensor) -> Tensor:
    return torch.nn.functional.pad(plane, (0, _GAP_PIXELS, 0, _GAP_PIXELS), value=-1.0)
