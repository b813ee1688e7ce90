from __future__ import annotations

import pytest
import torch

from hepalign.nets.regnet import RegNet, RegNetConfig, expected_offset, match_volume, upsample_field
from hepalign.transform.velocity import integrate

SMALL = RegNetConfig(encoder_channels=4, level_channels=8, coarse_reach=1, fine_reach=1)


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 1, 1, 32, 32, 16, generator=generator)
    return a, b


def test_equal_images_start_near_the_identity_and_it_predicts_at_a_quarter_and_a_half() -> None:
    torch.manual_seed(0)
    image, _ = images()
    velocities = RegNet(SMALL)(image, image)
    assert velocities.quarter.shape == (1, 3, 8, 8, 4)
    assert velocities.half.shape == (1, 3, 16, 16, 8)
    assert velocities.half.abs().mean() < 0.2
    assert velocities.half.dtype == torch.float32


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net = RegNet(SMALL)
    net(*images()).half.square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


def test_bfloat16_gives_the_float32_field_within_its_tolerance() -> None:
    torch.manual_seed(0)
    net = RegNet(SMALL).eval()
    for head in (net.coarse_velocity, net.fine_velocity):
        torch.nn.init.normal_(head.weight, std=0.02)
    with torch.inference_mode():
        exact = net(*images()).half
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(*images()).half
    assert (exact - rough).norm() < 0.03 * exact.norm()


def test_upsampling_doubles_displacements_in_voxels() -> None:
    torch.testing.assert_close(upsample_field(torch.ones(1, 3, 2, 2, 2)), torch.full((1, 3, 4, 4, 4), 2.0))


def test_ill_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        RegNet(SMALL)(torch.zeros(1, 1, 24, 32, 32), torch.zeros(1, 1, 24, 32, 32))


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


def test_an_untrained_network_already_finds_part_of_a_shift() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 1, 16, 16, 16, generator=generator)
    moving = torch.nn.functional.interpolate(coarse, size=(48, 48, 48), mode="trilinear")
    fixed = torch.roll(moving, -4, dims=2)
    with torch.no_grad():
        field = 2 * integrate(RegNet()(moving, fixed).half)
    assert float(field[0, 0, 6:-6, 6:-6, 6:-6].mean()) > 2.0
