from __future__ import annotations

import torch
import torch.nn.functional as F

from hepalign.inference.sampling import Places, from_rows, index_rows, read_at, smooth, smooth_rows, to_rows
from hepalign.transform.warp import warp_tensor


def test_reading_equals_the_warp_kernel_inside_and_beyond_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 5, 9, 8, 7, generator=generator)
    displacement = 6 * torch.rand(1, 3, 9, 8, 7, generator=generator) - 3
    expected = warp_tensor(image, displacement)
    indices = index_rows((9, 8, 7)) + to_rows(displacement)
    torch.testing.assert_close(from_rows(read_at(to_rows(image), indices)), expected, rtol=1e-4, atol=1e-5)


def test_a_flat_axis_is_read_too() -> None:
    table = torch.arange(12.0).reshape(1, 4, 3, 1)
    values = Places(torch.tensor([[0.4, 1.5, 2.0]]), table.shape).read(table)
    torch.testing.assert_close(values, torch.tensor([[6.5]]))


def test_smoothing_keeps_constants_and_equals_a_convolution_inside() -> None:
    torch.testing.assert_close(smooth(torch.full((2, 6, 5, 7), 3.0), 1.5), torch.full((2, 6, 5, 7), 3.0))
    image = torch.zeros(1, 15, 15, 15)
    image[0, 7, 7, 7] = 1
    kernel = torch.exp(-0.5 * (torch.arange(-3.0, 4.0)) ** 2)
    kernel = kernel / kernel.sum()
    expected = torch.einsum("i,j,k->ijk", kernel, kernel, kernel)
    torch.testing.assert_close(smooth(image, 1.0)[0, 4:11, 4:11, 4:11], expected, rtol=1e-4, atol=1e-7)
    rows = to_rows(F.pad(image[None], [0] * 6))
    torch.testing.assert_close(smooth_rows(rows, 1.0)[..., 0], smooth(image, 1.0)[0])
