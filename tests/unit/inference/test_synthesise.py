"""MR to CT on the MR's own grid, whatever its spacing and orientation."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from hepalign.errors import BadInputError, WorkFailedError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import normalise_mr, unit_to_ct
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.synthesise import synthesise
from hepalign.nets.cyclegan import GeneratorConfig


class Copy(torch.nn.Module):
    """Gives back what it gets, so that grids and scales can be followed through."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[2:] == self.config.patch
        return image


def bundle_of(net: torch.nn.Module) -> Bundle:
    empty = MappingProxyType({})
    return Bundle(MappingProxyType({"synthesis": net}), empty, empty, empty, Path())


def ball(geometry: Geometry) -> Volume:
    """A smooth MR-like ball around the world's origin."""
    radius = np.linalg.norm(geometry.grid_mm(), axis=-1)
    return Volume((400 / (1 + np.exp((radius - 30) / 6))).astype(np.float32), geometry)


@pytest.mark.parametrize("spacing_mm", [None, 4.0])
def test_hu_come_back_on_the_mrs_grid(spacing_mm: float | None) -> None:
    turn = np.array([[0, -1, 0], [0.96, 0, -0.28], [0.28, 0, 0.96]])
    geometry = Geometry.from_spacing(
        (26, 30, 18), (4.0, 3.0, 6.0), origin_mm=turn @ np.array([-50, -45, -51]), direction=turn
    )
    mr = ball(geometry)
    net = Copy(GeneratorConfig(spacing_mm=spacing_mm, patch=(16, 16, 16), window_hu=(-800.0, 1200.0)))
    result = synthesise(bundle_of(net), mr)
    assert result.geometry.same_grid(geometry)
    assert result.data.dtype == np.float32
    expected = unit_to_ct(normalise_mr(mr)[0], (-800.0, 1200.0))
    error = np.abs(result.as_float() - expected)[2:-2, 2:-2, 2:-2]
    assert error.max() < (0.1 if spacing_mm is None else 150)
    assert error.mean() < 20


def test_the_mr_is_not_written_to() -> None:
    mr = ball(Geometry.from_spacing((12, 12, 12), 8.0, origin_mm=(-44, -44, -44)))
    before = mr.as_float().copy()
    mr.data.flags.writeable = False
    synthesise(bundle_of(Copy(GeneratorConfig(patch=(8, 8, 8)))), mr)
    np.testing.assert_array_equal(mr.as_float(), before)


def test_fault_22_a_constant_mr_is_refused() -> None:
    flat = Volume(np.full((8, 8, 8), 7.0, np.float32), Geometry.from_spacing((8, 8, 8), 5.0))
    with pytest.raises(BadInputError) as error:
        synthesise(bundle_of(Copy(GeneratorConfig(patch=(8, 8, 8)))), flat)
    assert error.value.code == "constant_volume"


def test_noise_around_the_patient_stays_air() -> None:
    class Loud(Copy):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            mean, deviation = image.mean((1, 2, 3, 4), keepdim=True), image.std((1, 2, 3, 4), keepdim=True)
            return (image - mean) / deviation

    geometry = Geometry.from_spacing((64, 32, 32), 2.0, origin_mm=(-30, -31, -31))
    mr = ball(geometry)
    noisy = mr.with_data(mr.as_float() + np.random.default_rng(0).uniform(0, 8, geometry.shape).astype(np.float32))
    config = GeneratorConfig(spacing_mm=None, patch=(16, 32, 32), window_hu=(-1000.0, 1000.0))
    result = synthesise(bundle_of(Loud(config)), noisy).as_float()
    assert (result[56:] == -1000).all()
    assert result[10:20, 10:20, 10:20].min() > 0


class Failing(Copy):
    """A generator whose values are not finite in one voxel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = image.clone()
        made[..., 5, 5, 5] = torch.inf
        return made


def test_values_that_are_not_finite_are_no_synthetic_ct() -> None:
    net = Failing(GeneratorConfig(patch=(16, 16, 16)))
    image = ball(Geometry.from_spacing((16, 16, 16), 6.0, origin_mm=(-45.0, -45.0, -45.0)))
    with pytest.raises(WorkFailedError, match="no finite values") as failed:
        synthesise(bundle_of(net), image)
    assert failed.value.code == "network_failed"
