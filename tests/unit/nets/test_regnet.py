from __future__ import annotations

import pytest
import torch

from hepalign.nets.regnet import RegNet, RegNetConfig, expected_offset, match_volume, network_inputs, upsample_field
from hepalign.transform.velocity import integrate

SMALL = RegNetConfig(encoder_channels=4, level_channels=8, coarse_reach=1, fine_reach=1)


def inputs() -> torch.Tensor:
    a, b = torch.rand(2, 1, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0))
    return network_inputs(a, b)


def learned() -> RegNet:
    """A network as a training leaves it: matches are believed, heads say something."""
    torch.manual_seed(0)
    net = RegNet(SMALL)
    torch.nn.init.ones_(net.gains)
    for head in (net.coarse_velocity, net.fine_velocity):
        torch.nn.init.normal_(head.weight, std=0.02)
    return net


def test_untrained_it_adds_nothing() -> None:
    torch.manual_seed(0)
    velocity = RegNet(SMALL)(inputs())
    assert velocity.shape == (1, 3, 16, 16, 8)
    assert velocity.abs().max() < 0.01
    assert velocity.dtype == torch.float32


def test_every_parameter_learns() -> None:
    net = learned()
    net(inputs()).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


def test_the_gains_learn_from_the_first_step_on() -> None:
    torch.manual_seed(0)
    net = RegNet(SMALL)
    (net(inputs()) - 1).square().sum().backward()
    assert net.gains.grad is not None
    assert (net.gains.grad != 0).all()


def test_bfloat16_gives_the_float32_field_within_its_tolerance() -> None:
    net = learned().eval()
    with torch.inference_mode():
        exact = net(inputs())
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(inputs())
    assert (exact - rough).norm() < 0.03 * exact.norm()


def test_upsampling_doubles_displacements_in_voxels() -> None:
    torch.testing.assert_close(upsample_field(torch.ones(1, 3, 2, 2, 2)), torch.full((1, 3, 4, 4, 4), 2.0))


def test_ill_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        network_inputs(torch.zeros(1, 1, 24, 32, 32), torch.zeros(1, 1, 24, 32, 32))


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, -2, 1)])
def test_the_sharpest_match_is_the_applied_shift(shift: tuple[int, int, int]) -> None:
    features = torch.rand(1, 6, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    # fixed(x) = moving(x + shift)
    fixed = torch.roll(features, [-s for s in shift], dims=(2, 3, 4))
    offset = expected_offset(1e4 * match_volume(features, fixed, 2), 2)
    inner = offset[0, :, 4:-4, 4:-4, 4:-4]
    expected = torch.tensor(shift, dtype=torch.float32).view(3, 1, 1, 1).expand_as(inner)
    assert torch.allclose(inner, expected, atol=1e-3)


def test_equal_logits_expect_no_offset() -> None:
    assert torch.allclose(expected_offset(torch.zeros(1, 27, 2, 2, 2), 1), torch.zeros(1, 3, 2, 2, 2), atol=1e-6)


def test_believed_matches_find_part_of_a_shift() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 1, 16, 16, 16, generator=generator)
    moving = torch.nn.functional.interpolate(coarse, size=(48, 48, 48), mode="trilinear")
    fixed = torch.roll(moving, -4, dims=2)
    net = RegNet()
    torch.nn.init.ones_(net.gains)
    with torch.no_grad():
        field = 2 * integrate(net(network_inputs(moving, fixed)))
    assert float(field[0, 0, 6:-6, 6:-6, 6:-6].mean()) > 2.0
