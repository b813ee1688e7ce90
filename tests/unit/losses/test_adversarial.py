"""Least squares, the frozen discriminator, and the buffer of past fakes."""

from __future__ import annotations

import pytest
import torch

from hepalign.losses.adversarial import ImageBuffer, judge_frozen, least_squares
from hepalign.nets.cyclegan import DiscriminatorConfig, PatchDiscriminator


def test_least_squares() -> None:
    judgement = torch.tensor([0.0, 0.5, 1.0])
    assert least_squares(judgement, real=True).item() == pytest.approx((1 + 0.25 + 0) / 3)
    assert least_squares(judgement, real=False).item() == pytest.approx((0 + 0.25 + 1) / 3)


def test_a_frozen_judge_passes_gradients_on_and_keeps_none() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(DiscriminatorConfig(width=2))
    image = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    frozen = judge_frozen(judge, image)
    torch.testing.assert_close(frozen, judge(image))
    least_squares(frozen, real=True).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in judge.parameters())


def fakes(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32).view(-1, 1, 1, 1, 1)


def test_the_buffer_first_fills_then_returns_old_ones_about_half_the_time() -> None:
    buffer = ImageBuffer(10, seed=0)
    assert buffer.exchange(fakes(0, 10)).flatten().tolist() == list(range(10))
    given = torch.cat([buffer.exchange(fakes(10 + n, 1)) for n in range(400)]).flatten()
    old = (given != torch.arange(10, 410)).float().mean().item()
    assert 0.4 < old < 0.6
    assert len(set(given.tolist())) == 400, "an image leaves the buffer when it is given"


def test_an_empty_buffer_gives_the_new_ones() -> None:
    assert ImageBuffer(0, seed=0).exchange(fakes(3, 2)).flatten().tolist() == [3, 4]


def test_a_restored_buffer_goes_on_exactly() -> None:
    first = ImageBuffer(4, seed=1)
    for n in range(20):
        first.exchange(fakes(n, 2))
    second = ImageBuffer(4, seed=99)
    second.load_state(first.state())
    for n in range(20, 40):
        torch.testing.assert_close(first.exchange(fakes(n, 2)), second.exchange(fakes(n, 2)))
