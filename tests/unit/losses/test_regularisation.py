from __future__ import annotations

import pytest
import torch

from hepalign.losses.regularisation import bending_energy, diffusion


def coordinates(n: int = 7) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float64)] * 3
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def test_a_linear_field_does_not_bend() -> None:
    matrix = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0], [0.0, -2.0, 1.0]], dtype=torch.float64)
    field = torch.einsum("ij,bjdhw->bidhw", matrix, coordinates())
    assert float(bending_energy(field)) == pytest.approx(0.0, abs=1e-20)
    assert float(diffusion(field)) == pytest.approx(float(matrix.square().sum()))


def test_energies_of_quadratics_in_closed_form() -> None:
    x = coordinates()
    square = torch.zeros_like(x)
    square[:, 0] = x[:, 0] ** 2
    assert float(bending_energy(square)) == pytest.approx(4.0)
    mixed = torch.zeros_like(x)
    mixed[:, 2] = x[:, 0] * x[:, 1]
    # two equal mixed derivatives of 1
    assert float(bending_energy(mixed)) == pytest.approx(2.0)


def test_a_constant_field_costs_nothing() -> None:
    assert float(diffusion(torch.full((2, 3, 5, 5, 5), 4.0))) == 0.0
