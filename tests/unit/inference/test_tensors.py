"""Sliding windows: exact for what needs no context, without seams, for any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hepalign.inference.tensors import sliding_window


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 23, 17), (9, 30, 5)])
def test_a_pointwise_network_gives_what_it_gives_on_the_whole(shape: tuple[int, int, int]) -> None:
    image = torch.randn(1, 2, *shape)
    result = sliding_window(lambda x: torch.cat([x.square(), x[:, :1]], dim=1), image, (16, 16, 16))
    assert result.shape == (1, 3, *shape)
    torch.testing.assert_close(result, torch.cat([image.square(), image[:, :1]], dim=1), rtol=1e-5, atol=1e-5)


def test_windows_have_the_size_they_were_trained_with() -> None:
    seen: set[tuple[int, ...]] = set()

    def net(x: Tensor) -> Tensor:
        seen.add(tuple(x.shape))
        return x

    sliding_window(net, torch.randn(1, 1, 20, 50, 7), (16, 24, 8))
    assert {shape[1:] for shape in seen} == {(1, 16, 24, 8)}


def test_windows_that_go_together_do_not_mix() -> None:
    image = torch.randn(1, 1, 30, 22, 17)

    def level(x: Tensor) -> Tensor:
        return x - x.mean((1, 2, 3, 4), keepdim=True)

    together = sliding_window(level, image, (8, 8, 8))
    one_by_one = sliding_window(lambda x: torch.cat([level(window[None]) for window in x]), image, (8, 8, 8))
    torch.testing.assert_close(together, one_by_one)


def test_no_seam_shows_where_windows_meet() -> None:
    # A network that answers differently in every window: its level is the window's first voxel.
    ramp = torch.linspace(0, 1, 96).view(1, 1, 96, 1, 1).expand(1, 1, 96, 8, 8).contiguous()
    result = sliding_window(lambda x: torch.zeros_like(x) + x[:, :, :1, :1, :1], ramp, (32, 8, 8))
    line = result[0, 0, :, 4, 4]
    steps = line.diff().abs()
    assert float(line.max() - line.min()) > 0.5
    assert float(steps.max()) < 0.05, "a hard seam would step by a window's distance, 1/6"


def test_bfloat16_answers_are_blended_in_float32() -> None:
    result = sliding_window(lambda x: x.bfloat16(), torch.ones(1, 1, 20, 20, 20), (16, 16, 16))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.ones_like(result))
