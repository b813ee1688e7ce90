"""Inpainting touches the hole only, sees nothing of what the hole holds, and uses the prior where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.inpaint import FAILED, inpaint
from hepalign.nets.partial_conv import PConvUNet
from hepalign.nets.unet import InpaintingNetConfig

GEOMETRY = Geometry.from_spacing((40, 36, 30), (2.0, 2.0, 3.0), direction=[[0, -1, 0], [-1, 0, 0], [0, 0, 1]])


def bundle(spacing_mm: float | None = None) -> Bundle:
    torch.manual_seed(0)
    net = PConvUNet(InpaintingNetConfig(widths=(4, 4, 4), head_width=2, spacing_mm=spacing_mm)).eval()
    empty = MappingProxyType({})
    return Bundle(MappingProxyType({"inpainting": net}), empty, empty, empty, Path())


@pytest.fixture
def ict() -> Volume:
    rng = np.random.default_rng(0)
    data = 60 + 20 * rng.standard_normal(GEOMETRY.shape)
    data[10:14, 10:20, 8:20] = 3000
    return Volume(data.astype(np.float32), GEOMETRY)


@pytest.fixture
def hole() -> Volume:
    mask = np.zeros(GEOMETRY.shape, bool)
    mask[8:16, 8:22, 6:22] = True
    return Volume(mask, GEOMETRY)


@pytest.mark.parametrize("spacing_mm", [None, 2.5])
def test_outside_the_hole_every_bit_is_kept(ict: Volume, hole: Volume, spacing_mm: float | None) -> None:
    result = inpaint(bundle(spacing_mm), ict, hole)
    outside = ~hole.as_mask()
    np.testing.assert_array_equal(result.image.as_float()[outside], ict.as_float()[outside])
    np.testing.assert_array_equal(result.mask.data, hole.as_mask())
    assert result.mask.data.dtype == bool
    filled = result.image.as_float()[hole.as_mask()]
    assert np.isfinite(filled).all()
    assert filled.min() >= -200
    assert filled.max() <= 400
    assert abs(filled.mean() - 60) < 30


class Failing(PConvUNet):
    """A network that computes nothing finite."""

    def forward(self, image: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(image, torch.nan), torch.ones_like(image)


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_failing_network_leaves_the_smooth_fill_and_says_so(ict: Volume, hole: Volume, with_prior: bool) -> None:
    net = Failing(InpaintingNetConfig(widths=(4, 4), prior=True))
    broken = replace(bundle(), networks=MappingProxyType({"inpainting": net}))
    result = inpaint(broken, ict, hole, Volume(np.full(GEOMETRY.shape, 50.0), GEOMETRY) if with_prior else None)
    filled = result.image.as_float()[hole.as_mask()]
    assert np.isfinite(filled).all()
    assert abs(filled.mean() - 60) < 15
    assert result.warnings == (FAILED,)
    assert not inpaint(bundle(), ict, hole).warnings


@pytest.mark.parametrize("spacing_mm", [None, 2.5])
def test_what_the_hole_holds_makes_no_difference(ict: Volume, hole: Volume, spacing_mm: float | None) -> None:
    other = ict.as_float().copy()
    other[hole.as_mask()] = -777
    first = inpaint(bundle(spacing_mm), ict, hole).image.as_float()
    second = inpaint(bundle(spacing_mm), ict.with_data(other), hole).image.as_float()
    np.testing.assert_array_equal(first, second)


def test_integer_images_come_back_as_float_and_unwritten(hole: Volume) -> None:
    data = np.full(GEOMETRY.shape, 50, np.int16)
    data.flags.writeable = False
    result = inpaint(bundle(), Volume(data, GEOMETRY), hole)
    assert result.image.data.dtype == np.float32
    assert (result.image.as_float()[~hole.as_mask()] == 50).all()


def test_a_prior_brings_its_structure_and_not_its_level(ict: Volume, hole: Volume) -> None:
    flat = ict.with_data(np.full(GEOMETRY.shape, 60, np.float32))
    prior = np.full(GEOMETRY.shape, 100, np.float32)
    prior[11:13, 14:16, 12:16] = 180
    filled = inpaint(bundle(), flat, hole, flat.with_data(prior)).image.as_float()
    assert abs(filled[9, 20, 20] - 60) < 15, "harmonised to the iCT, not the prior's 100 HU"
    assert filled[11:13, 14:16, 12:16].mean() - filled[8:10, 8:10, 6:10].mean() > 50


def test_where_the_prior_does_not_reach_it_is_not_used(ict: Volume, hole: Volume) -> None:
    prior = np.full(GEOMETRY.shape, np.nan, np.float32)
    without = inpaint(bundle(), ict, hole).image.as_float()
    unknown = inpaint(bundle(), ict, hole, ict.with_data(prior)).image.as_float()
    np.testing.assert_allclose(unknown, without, atol=0.5)


def test_a_hole_at_the_corner_and_a_hole_that_fills_the_image(ict: Volume) -> None:
    corner = np.zeros(GEOMETRY.shape, bool)
    corner[:3, :3, :2] = True
    for mask in (corner, np.ones(GEOMETRY.shape, bool)):
        result = inpaint(bundle(2.5), ict, ict.with_data(mask))
        assert np.isfinite(result.image.as_float()).all()


def test_only_the_box_around_the_hole_is_computed(hole: Volume) -> None:
    geometry = Geometry.from_spacing((200, 200, 100), 2.0)
    mask = np.zeros(geometry.shape, bool)
    mask[90:100, 90:100, 40:50] = True
    release = bundle()
    shapes: list[torch.Size] = []
    release.networks["inpainting"].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    inpaint(release, Volume(np.zeros(geometry.shape, np.int16), geometry), Volume(mask, geometry))
    assert shapes == [(1, 1, 34, 34, 34)]


@pytest.mark.parametrize(("voxel_mm", "grid_mm"), [(1.0, 2.0), (2.0, 2.0), (4.0, 3.4)])
def test_a_coarse_ict_is_not_filled_much_more_finely_than_it_is(voxel_mm: float, grid_mm: float) -> None:
    size = round(160 / voxel_mm)
    geometry = Geometry.from_spacing((size, size, size), (voxel_mm, voxel_mm, 1.5 * voxel_mm))
    mask = np.zeros(geometry.shape, bool)
    mask[size // 4 : size // 2, size // 4 : size // 2, size // 4 : size // 2] = True
    release = bundle(2.0)
    shapes: list[torch.Size] = []
    release.networks["inpainting"].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    inpaint(release, Volume(np.zeros(geometry.shape, np.int16), geometry), Volume(mask, geometry))
    # 40 mm of hole and 24 mm of margin on either side
    assert [n * grid_mm for n in shapes[0][2:4]] == pytest.approx([88, 88], abs=grid_mm + voxel_mm)


def test_wrong_masks_are_refused(ict: Volume, hole: Volume) -> None:
    moved = Volume(hole.data, Geometry.from_spacing(GEOMETRY.shape, 2.0))
    with pytest.raises(BadInputError) as error:
        inpaint(bundle(), ict, moved)
    assert error.value.code == "grid_mismatch"
    with pytest.raises(BadInputError) as error:
        inpaint(bundle(), ict, hole.with_data(np.zeros(GEOMETRY.shape, bool)))
    assert error.value.code == "empty_mask"
