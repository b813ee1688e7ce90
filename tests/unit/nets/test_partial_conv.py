"""The partial convolution against its formula written out voxel by voxel, and the mask's way through the U-Net."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hepalign.nets.partial_conv import PartialConv3d, PConvUNet
from hepalign.nets.precision import autocast
from hepalign.nets.unet import InpaintingNetConfig


def by_hand(layer: PartialConv3d, groups: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1 and 2 of Liu et al. at every voxel; the concatenated mask has one channel a feature channel."""
    x = torch.cat([features for features, _ in groups], dim=1)[0].double().numpy()
    m = torch.cat([mask.expand_as(features) for features, mask in groups], dim=1)[0].double().numpy()
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    k, stride, reach = layer.kernel, layer.stride, layer.kernel // 2
    padded_x, padded_m = (np.pad(a, ((0, 0), *[(reach, reach)] * 3)) for a in (x, m))
    size = [(n + 2 * reach - k) // stride + 1 for n in x.shape[1:]]
    out, updated = np.zeros((len(weight), *size)), np.zeros(size)
    for place in itertools.product(*map(range, size)):
        window = (slice(None), *(slice(p * stride, p * stride + k) for p in place))
        total = padded_m[window].sum()
        if total > 0:
            ones = x.shape[0] * k**3
            for channel in range(len(weight)):
                response = (weight[channel] * padded_x[window] * padded_m[window]).sum()
                out[(channel, *place)] = response * ones / total + bias[channel]
            updated[place] = 1
    return out, updated


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_one_group_follows_the_formula(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = PartialConv3d([2], 3, kernel=kernel, stride=stride)
    nn.init.normal_(layer.bias)
    x, mask = torch.randn(1, 2, 7, 6, 5), (torch.rand(1, 1, 7, 6, 5) > 0.8).float()
    out, updated = layer([(x, mask)])
    expected, expected_mask = by_hand(layer, [(x, mask)])
    np.testing.assert_allclose(out[0].detach().numpy(), expected, atol=2e-5)
    np.testing.assert_array_equal(updated[0, 0].numpy(), expected_mask)


def test_concatenated_groups_sum_the_mask_over_their_channels() -> None:
    torch.manual_seed(1)
    layer = PartialConv3d([3, 1], 2)
    deep = torch.randn(1, 3, 5, 5, 5), (torch.rand(1, 1, 5, 5, 5) > 0.7).float()
    skip = torch.randn(1, 1, 5, 5, 5), (torch.rand(1, 1, 5, 5, 5) > 0.5).float()
    out, updated = layer([deep, skip])
    expected, expected_mask = by_hand(layer, [deep, skip])
    np.testing.assert_allclose(out[0].detach().numpy(), expected, atol=2e-5)
    np.testing.assert_array_equal(updated[0, 0].numpy(), expected_mask)


def test_an_open_mask_gives_the_plain_convolution_inside() -> None:
    layer = PartialConv3d([2], 2)
    x = torch.randn(1, 2, 8, 8, 8)
    out, updated = layer([(x, torch.ones(1, 1, 8, 8, 8))])
    plain = nn.functional.conv3d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(out[..., 1:-1, 1:-1, 1:-1], plain[..., 1:-1, 1:-1, 1:-1])
    assert updated.all()


def test_a_constant_is_kept_whatever_the_mask() -> None:
    # The known bug "missing sum(1)" divides the output by the window; a mean filter would show 1/27 of the constant.
    layer = PartialConv3d([1], 1, bias=False)
    nn.init.constant_(layer.weight, 1 / 27)
    mask = (torch.rand(1, 1, 9, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    out, updated = layer([(torch.full((1, 1, 9, 9, 9), 3.0), mask)])
    torch.testing.assert_close(out, 3.0 * updated)


def test_voxels_without_input_are_zero_even_with_a_bias() -> None:
    layer = PartialConv3d([1], 4)
    nn.init.constant_(layer.bias, 7.0)
    mask = torch.ones(1, 1, 9, 9, 9)
    mask[..., 2:7, 2:7, 2:7] = 0
    out, updated = layer([(torch.randn(1, 1, 9, 9, 9), mask)])
    assert updated[0, 0, 3:6, 3:6, 3:6].sum() == 0
    assert updated.sum() == 9**3 - 27
    assert (out[:, :, 3:6, 3:6, 3:6] == 0).all()


def test_what_stands_in_the_hole_is_never_seen() -> None:
    layer = PartialConv3d([1], 2)
    mask = torch.ones(1, 1, 6, 6, 6)
    mask[..., 2:4, 2:4, 2:4] = 0
    x = torch.randn(1, 1, 6, 6, 6)
    other = torch.where(mask > 0, x, torch.full_like(x, 1e4))
    torch.testing.assert_close(layer([(x, mask)])[0], layer([(other, mask)])[0], rtol=0, atol=0)


def test_window_sums_stay_exact_under_autocast() -> None:
    # 129 channels x 27 voxels is above bfloat16's 8 bits: a ratio computed in bfloat16 would be off by a percent.
    layer = PartialConv3d([129], 1)
    mask = torch.ones(1, 1, 5, 5, 5)
    mask[..., 2, 2, 2] = 0
    with autocast("cpu"):
        ratio, _ = layer._normalisation([(mask, 129)])
    assert ratio.dtype == torch.float32
    torch.testing.assert_close(ratio[0, 0, 2, 2, 1], torch.tensor(27 / 26), rtol=1e-6, atol=0)


def test_the_prior_neither_closes_the_hole_nor_dilutes_the_image() -> None:
    torch.manual_seed(2)
    layer = PartialConv3d([1], 2, prior_channels=1, bias=False)
    mask = torch.ones(1, 1, 9, 9, 9)
    mask[..., 2:7, 2:7, 2:7] = 0
    image, prior, open_mask = torch.randn(1, 1, 9, 9, 9), torch.randn(1, 1, 9, 9, 9), torch.ones(1, 1, 9, 9, 9)
    out, updated = layer([(image, mask)], (prior, open_mask))
    alone = PartialConv3d([1], 2, bias=False)
    alone.weight = nn.Parameter(layer.weight[:, :1])
    of_image, expected_mask = alone([(image, mask)])
    alone.weight = nn.Parameter(layer.weight[:, 1:])
    of_prior, _ = alone([(prior, open_mask)])
    torch.testing.assert_close(updated, expected_mask)
    assert updated[0, 0, 3:6, 3:6, 3:6].sum() == 0
    torch.testing.assert_close(out, of_image + of_prior)


def test_gradients() -> None:
    torch.manual_seed(3)
    layer = PartialConv3d([2, 1], 2, prior_channels=1).double()
    masks = [(torch.rand(1, 1, 4, 4, 4) > 0.5).double() for _ in range(3)]
    inputs = [torch.randn(1, channels, 4, 4, 4, dtype=torch.double, requires_grad=True) for channels in (2, 1, 1)]

    def run(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return layer([(a, masks[0]), (b, masks[1])], (c, masks[2]))[0]

    assert torch.autograd.gradcheck(run, inputs, atol=1e-4)


def test_wrong_channels_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) channels, got \[1\]"):
        PartialConv3d([2], 1)([(torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4))])


@pytest.mark.parametrize("prior", [False, True])
def test_the_mask_closes_for_the_largest_probe_box(prior: bool) -> None:
    # InpaintingData's widest hole is 2 x 12 mm; three probes side by side and turned fill less than 62 voxels of 2 mm.
    net = PConvUNet(InpaintingNetConfig(widths=(2, 2, 2, 2, 2), head_width=2, prior=prior)).eval()
    mask = torch.ones(1, 1, 72, 72, 72)
    mask[..., 5:67, 5:67, 5:67] = 0
    image = torch.zeros_like(mask)
    _, closed = net(image, mask, image if prior else None)
    assert closed.all()
    mask[...] = 1
    mask[..., 1:71, 1:71, 1:71] = 0
    group = (image * mask, mask)
    for level in net.encoder:
        group = level([group])
    assert not group[1].all(), "a hole of 70 voxels must leave the bottleneck's mask open, or this test shows nothing"


@pytest.mark.parametrize("shape", [(16, 16, 16), (19, 22, 13), (5, 9, 6)])
def test_any_shape_and_no_unused_weights(shape: tuple[int, int, int]) -> None:
    net = PConvUNet(InpaintingNetConfig(widths=(4, 4, 4, 4), head_width=2))
    image, mask = torch.randn(2, 1, *shape), torch.ones(2, 1, *shape)
    mask[:, :, 2:4, 3:6, 2:5] = 0
    output, _ = net(image, mask, image)
    assert output.shape == image.shape
    assert output.dtype == torch.float32
    output.sum().backward()
    # DDP refuses parameters that get no gradient.
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_the_networks_output_ignores_the_hole_and_starts_at_the_harmonised_prior() -> None:
    torch.manual_seed(4)
    net = PConvUNet(InpaintingNetConfig(widths=(4, 4), head_width=2)).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    mask = torch.ones_like(image)
    mask[..., 5:10, 5:10, 5:10] = 0
    hidden = torch.where(mask > 0, image, torch.full_like(image, 50.0))
    with torch.no_grad():
        first, _ = net(image, mask, image - 0.3)
        second, _ = net(hidden, mask, image - 0.3)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # the prior lacks 0.3 everywhere: harmonised it is the image itself, up to the small first residual
    assert ((1 - mask) * (first - image)).abs().max() < 0.1
