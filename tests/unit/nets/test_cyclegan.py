"""The generator and the discriminator."""

from __future__ import annotations

import pytest
import torch

from hepalign.nets.cyclegan import DiscriminatorConfig, GeneratorConfig, PatchDiscriminator, ResNetGenerator


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 10, 13)])
def test_the_generator_keeps_any_shape_and_the_range(shape: tuple[int, int, int]) -> None:
    net = ResNetGenerator(GeneratorConfig(width=2, blocks=1))
    result = net(torch.randn(2, 1, *shape) * 5)
    assert result.shape == (2, 1, *shape)
    assert result.abs().max() <= 1
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    # The stage puts real and other images through a network in one batch.
    image = torch.randn(2, 1, 12, 12, 12)
    for net in (ResNetGenerator(GeneratorConfig(width=2)), PatchDiscriminator(DiscriminatorConfig(width=2))):
        torch.testing.assert_close(net(image)[:1], net(image[:1]))


def test_the_discriminator_judges_patches() -> None:
    net = PatchDiscriminator(DiscriminatorConfig(width=2))
    image = torch.randn(1, 1, 32, 32, 32)
    assert net(image).shape == (1, 1, 8, 8, 8)
    # one judgement depends on its own neighbourhood only (instance norm aside, which eval mode does not change)
    without_norm = torch.nn.Sequential(*[m for m in net.layers if not isinstance(m, torch.nn.InstanceNorm3d)])
    changed = image.clone()
    changed[..., 20:, 20:, 20:] += 1
    difference = (without_norm(changed) - without_norm(image)).abs()
    assert difference[..., 0, 0, 0].item() == 0
    assert difference[..., 7, 7, 7].item() > 0
