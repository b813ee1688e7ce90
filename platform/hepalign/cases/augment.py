"""Random changes that keep images, masks and fields consistent; every one is driven by the generator it is given.

TorchIO's transforms are used in their deterministic form (parameters drawn here): its random forms draw from
torch's global generator, which other threads and the training loop use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.resample import sample_grid

Shape = tuple[int, int, int]


def random_turn(rng: np.random.Generator, rotation_deg: float, scale: float) -> NDArray[np.float64]:
    """A 3 x 3 rotation by up to `rotation_deg` about each axis, times a zoom within 1 ± `scale`."""
    angles = np.deg2rad(rng.uniform(-rotation_deg, rotation_deg, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        step = np.eye(3)
        step[[i, j], [i, j]] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    zoomed: NDArray[np.float64] = turn * (1 + rng.uniform(-scale, scale))
    return zoomed


def affine_about(shape: Shape, turn: NDArray[np.float64], shift_voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """4 x 4 index map `i ↦ turn (i − c) + c + shift`, c the middle of a grid of `shape`."""
    middle = (np.asarray(shape) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = middle + shift_voxels - turn @ middle
    return matrix


def index_grid(shape: Shape) -> Tensor:
    """Every voxel's own index, float32 [D, H, W, 3]."""
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def mapped(matrix: NDArray[np.float64], indices: Tensor) -> Tensor:
    """A 4 x 4 index map of indices [..., 3]."""
    turn = torch.from_numpy(matrix[:3, :3].T.astype(np.float32))
    return indices @ turn + torch.from_numpy(matrix[:3, 3].astype(np.float32))


def smooth_warp(rng: np.random.Generator, shape: Shape, amplitude_voxels: float, period_voxels: float) -> Tensor:
    """A random smooth displacement, float32 [D, H, W, 3], at most `amplitude_voxels` along each axis.

    Normal deviates on a lattice of about `period_voxels` pitch, interpolated by cubic splines. No fold appears while
    the amplitude stays below about a quarter of the period.
    """
    lattice = [max(int(np.ceil(n / period_voxels)), 1) + 1 for n in shape]
    coarse = rng.standard_normal((3, *lattice)).astype(np.float32)
    fine = scipy.ndimage.zoom(coarse, (1, 4, 4, 4), order=3, mode="nearest")
    warp = F.interpolate(torch.from_numpy(fine)[None], size=shape, mode="trilinear", align_corners=True)[0]
    peak = warp.abs().amax().clamp_min(1e-6)
    return (warp * (amplitude_voxels / peak)).permute(1, 2, 3, 0).contiguous()


def sampled(image: NDArray[np.generic], indices: Tensor, *, outside: float | Sequence[float] = 0.0) -> Tensor:
    """Linear interpolation of (D, H, W) or (C, D, H, W) at indices [d, h, w, 3], float32 [C, d, h, w].

    Only the box that the indices touch is read, so a small patch of a memory-mapped image is cheap; images that are
    read at the same places are read fastest as channels of one.

    Args:
        image: one channel or more.
        indices: continuous indices, the image of a grid under a continuous one-to-one map.
        outside: the value outside the image, one for all channels or one each.
    """
    channels = image if image.ndim == 4 else image[None]
    size = np.asarray(channels.shape[1:])
    ends = _extremes(indices)
    low = np.clip(np.floor(ends[0]).astype(int) - 1, 0, size - 1)
    high = np.clip(np.ceil(ends[1]).astype(int) + 2, low + 1, size)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    part = torch.from_numpy(np.array(channels[(slice(None), *box)], dtype=np.float32))
    at = indices - torch.from_numpy(low.astype(np.float32))
    beyond = torch.tensor(outside, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return sample_grid((part - beyond)[None], at[None], padding="zeros")[0] + beyond


def _extremes(indices: Tensor) -> NDArray[np.float32]:
    """Lowest and highest index along each axis, (2, 3): a one-to-one map takes them on the grid's faces."""
    faces = [indices.select(axis, end).reshape(-1, 3) for axis in range(3) for end in (0, -1)]
    low, high = torch.cat(faces).aminmax(dim=0)
    ends: NDArray[np.float32] = torch.stack([low, high]).numpy()
    return ends


def contrast(rng: np.random.Generator, image: Tensor, strength: float) -> Tensor:
    """Another contrast phase of a unit-scale image [C, D, H, W]: a random gamma (TorchIO) and a small gain."""
    gamma = float(np.exp(rng.uniform(-strength, strength)))
    positive = _applied(tio.Gamma(gamma=gamma), (image.clamp(-1, 1) + 1) / 2)
    gain = 1 + rng.uniform(-0.3, 0.3) * strength
    return (positive * (2 * gain) - 1).clamp(-1, 1)


def bias_field(rng: np.random.Generator, image: Tensor, strength: float) -> Tensor:
    """A receive-coil bias over a unit-scale MR image [C, D, H, W] (TorchIO's third-order polynomial)."""
    coefficients = rng.uniform(-strength, strength, 20).tolist()
    # a polynomial of the third order loses nothing on a coarse grid
    coarse = torch.ones(1, *(max(n // 4, 2) for n in image.shape[1:]))
    bias = _applied(tio.BiasField(coefficients=coefficients, order=3), coarse)
    fine = F.interpolate(bias[None], size=image.shape[1:], mode="trilinear", align_corners=True)[0]
    return ((image + 1) * fine - 1).clamp(-1, 1)


def _applied(transform: tio.Transform, image: Tensor) -> Tensor:
    # calling the transform itself would draw from the global generator, whether to apply it at all
    subject = tio.Subject(image=tio.ScalarImage(tensor=image))  # type: ignore[no-untyped-call]
    data: Tensor = transform.apply_transform(subject).get_first_image().data
    return data


def blurred(image: Tensor, sigma_voxels: float) -> Tensor:
    """A Gaussian blur of [C, D, H, W]."""
    radius = max(int(np.ceil(2.5 * sigma_voxels)), 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma_voxels**2))
    kernel = kernel / kernel.sum()
    out = image[:, None]
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = len(kernel)
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, pad, mode="replicate"), kernel.reshape(1, 1, *size))
    return out[:, 0]


def noisy(rng: np.random.Generator, image: Tensor, std: float) -> Tensor:
    """White noise of standard deviation `std` on a unit-scale image, clipped to the scale."""
    if std <= 0:
        return image
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    return (image + std * noise).clamp(-1, 1)
