from __future__ import annotations

import math

import torch

from hepalign.transform.velocity import integrate
from hepalign.transform.warp import warp_tensor


def test_a_constant_velocity_is_its_own_displacement() -> None:
    velocity = torch.full((1, 3, 6, 6, 6), 1.7)
    torch.testing.assert_close(integrate(velocity), velocity)


def test_a_linear_velocity_gives_the_exponential() -> None:
    # dx/dt = a (x - c) has the flow c + (x - c) exp(a t).
    a, n = 0.15, 33
    axis = torch.arange(n, dtype=torch.float32) - 16
    velocity = torch.zeros(1, 3, n, n, n)
    velocity[0, 0] = (a * axis)[:, None, None]
    displacement = integrate(velocity)
    expected = (math.exp(a) - 1) * axis
    torch.testing.assert_close(displacement[0, 0, 4:-4, 16, 16], expected[4:-4], atol=0.02, rtol=0)


def test_minus_the_velocity_is_the_inverse() -> None:
    axes = torch.meshgrid(*[torch.arange(24.0) / 4] * 3, indexing="ij")
    velocity = 1.5 * torch.stack([axes[1].sin(), axes[2].cos(), (axes[0] + axes[1]).sin()])[None]
    there, back = integrate(velocity), integrate(-velocity)
    closed = back + warp_tensor(there, back)
    assert closed[..., 6:-6, 6:-6, 6:-6].abs().max() < 0.05


def test_it_is_float32_and_differentiable_under_autocast() -> None:
    velocity = torch.zeros(1, 3, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        displacement = integrate(velocity)
    assert displacement.dtype == torch.float32
    displacement.sum().backward()
    assert velocity.grad is not None
    torch.testing.assert_close(velocity.grad, torch.ones_like(velocity), atol=1e-4, rtol=0)
