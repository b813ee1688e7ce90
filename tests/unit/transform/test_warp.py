from __future__ import annotations

import numpy as np
import pytest
import torch

from hepalign.image.geometry import Geometry
from hepalign.image.resample import Mode, resample
from hepalign.image.volume import Volume
from hepalign.transform import linear
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.warp import outside_grid, warp, warp_masks, warp_tensor, warp_together

GRID = Geometry.from_spacing((10, 12, 9), (1.5, 2.0, 3.0), origin_mm=(-5, 3, 8))


def noise(geometry: Geometry) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32), geometry)


def test_a_shift_moves_the_image_against_the_displacement() -> None:
    moving = noise(GRID)
    shift = DisplacementField.from_linear(linear.translation((3.0, 0, 0)), GRID)
    np.testing.assert_allclose(warp(moving, shift, fill=9.0).data[:-2], moving.data[2:], atol=1e-5)
    assert (warp(moving, shift, fill=9.0).data[-2:] == 9.0).all()


def test_identity_is_resampling() -> None:
    moving, target = noise(GRID), Geometry.from_spacing((8, 8, 8), 1.7, direction=linear.rotation((9, 8, 7))[:3, :3])
    identity = DisplacementField.identity(target)
    np.testing.assert_allclose(warp(moving, identity).data, resample(moving, target).data, atol=1e-5)
    labels = moving.with_data((moving.data > 0).astype(np.uint8))
    warped = warp(labels, identity, mode="nearest")
    assert warped.data.dtype == np.uint8
    np.testing.assert_array_equal(warped.data, resample(labels, target, mode="nearest").data)


def test_a_linear_field_equals_resampling_on_the_moved_grid() -> None:
    matrix = linear.rotation((5, -12, 30), GRID.centre_mm) @ linear.translation((2, 1, -3))
    moved = Geometry(GRID.shape, matrix @ GRID.affine)
    moving = noise(GRID)
    warped = warp(moving, DisplacementField.from_linear(matrix, GRID), fill=0.0)
    np.testing.assert_allclose(warped.data, resample(moving, moved, fill=0.0).data, atol=1e-4)


def test_outside_grid_is_where_warp_fills() -> None:
    matrix = linear.rotation((5, -12, 30), GRID.centre_mm)
    field = DisplacementField.from_linear(matrix, GRID)
    filled = warp(noise(GRID), field, fill=77.0).data == 77.0
    np.testing.assert_array_equal(outside_grid(GRID, field), filled)
    assert 0 < filled.mean() < 1


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_chunks_change_nothing(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    field = DisplacementField.from_linear(linear.rotation((5, -12, 30), GRID.centre_mm), GRID)
    whole = warp(noise(GRID), field, mode=mode).data
    monkeypatch.setattr("hepalign.image.trilinear.CHUNK_VOXELS", 100)
    monkeypatch.setattr("hepalign.image.trilinear.PARALLEL_VOXELS", 1)
    np.testing.assert_array_equal(warp(noise(GRID), field, mode=mode).data, whole)


def test_tensor_kernel_is_linear_interpolation_in_array_order() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 6, 7, 8, generator=generator)
    displacement = torch.zeros(2, 3, 6, 7, 8)
    displacement[:, 0], displacement[:, 1], displacement[:, 2] = 1.0, -2.0, 0.25
    warped = warp_tensor(image, displacement)
    # p = (1, 3, 2) reads (2, 1, 2.25).
    expected = 0.75 * image[:, :, 2, 1, 2] + 0.25 * image[:, :, 2, 1, 3]
    torch.testing.assert_close(warped[:, :, 1, 3, 2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp_tensor(image, torch.zeros(2, 3, 6, 7, 8)), image, atol=1e-5, rtol=0)


def test_tensor_kernel_padding_and_nearest() -> None:
    image = torch.ones(1, 1, 4, 4, 4)
    away = torch.full((1, 3, 4, 4, 4), 10.0)
    assert (warp_tensor(image, away, padding="border") == 1).all()
    assert (warp_tensor(image, away, padding="zeros") == 0).all()
    labels = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    near = torch.zeros(1, 3, 4, 4, 4)
    near[:, 2] = 0.4
    assert (warp_tensor(labels, near, mode="nearest") == labels).all()


def test_tensor_kernel_agrees_with_warp_on_volumes() -> None:
    moving = noise(Geometry.from_spacing((9, 9, 9), 2.0))
    voxels = np.random.default_rng(1).uniform(-0.4, 0.4, (9, 9, 9, 3)).astype(np.float32)
    field = DisplacementField(voxels * np.float32(2.0), moving.geometry)
    tensor = torch.from_numpy(voxels).movedim(-1, 0)[None]
    ours = warp_tensor(torch.from_numpy(moving.as_float())[None, None], tensor)[0, 0].numpy()
    np.testing.assert_allclose(warp(moving, field).data, ours, atol=1e-5)


def test_tensor_kernel_gradients_are_right_and_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 2, 5, 5, 5, generator=generator, requires_grad=True)
    displacement = (torch.rand(1, 3, 5, 5, 5, generator=generator) * 0.6 + 0.2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp_tensor(image, displacement)
    assert warped.dtype == torch.float32
    warped[0, 0, 2, 2, 2].backward()
    assert image.grad is not None
    assert displacement.grad is not None
    assert image.grad.sum().item() == pytest.approx(1.0, abs=1e-4)
    step = torch.zeros_like(displacement)
    step[0, 1, 2, 2, 2] = 1e-2
    change = warp_tensor(image, displacement + step) - warp_tensor(image, displacement - step)
    slope = change[0, 0, 2, 2, 2].item() / 2e-2
    assert displacement.grad[0, 1, 2, 2, 2].item() == pytest.approx(slope, abs=1e-3)


def bent(geometry: Geometry) -> DisplacementField:
    pose = linear.rotation((8, -5, 12), geometry.centre_mm) @ linear.translation((3, -2, 1))
    waves = 1.5 * np.sin(geometry.grid_mm() / 4)
    return DisplacementField(DisplacementField.from_linear(pose, geometry).vectors + waves.astype(np.float32), geometry)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_together_is_each_by_itself(mode: Mode) -> None:
    field = bent(Geometry.from_spacing((11, 9, 10), 2.0, origin_mm=(-6, 2, 6)))
    images = [noise(GRID), noise(GRID).with_data(np.arange(np.prod(GRID.shape), dtype=np.int16).reshape(GRID.shape))]
    both = warp_together(images, field, mode=mode, fills=[None, -7])
    for one, image, fill in zip(both, images, (None, -7), strict=True):
        alone = warp(image, field, mode=mode, fill=fill)
        np.testing.assert_array_equal(one.data, alone.data)
        assert one.data.dtype == alone.data.dtype
    assert (both[1].data == -7).any()


def test_what_is_warped_together_shares_a_grid() -> None:
    with pytest.raises(ValueError, match="share one grid"):
        warp_together([noise(GRID), noise(GRID.with_shape((5, 6, 4)))], bent(GRID))


def test_masks_are_warped_as_images_are_and_cut_at_one_half() -> None:
    field = bent(Geometry.from_spacing((16, 18, 20), 1.3, origin_mm=(-8, 0, 4)))
    masks = [np.zeros(GRID.shape, bool) for _ in range(4)]
    masks[0][3:6, 4:8, 2:5] = True
    masks[1][0, :, 8] = True
    masks[2][:] = True
    warped = warp_masks(masks, GRID, field)
    for mask, found in zip(masks, warped, strict=True):
        whole = warp(Volume(mask.astype(np.float32), GRID), field, fill=0.0).data
        clear = np.abs(whole - 0.5) > 1e-4
        np.testing.assert_array_equal(found[clear], whole[clear] > 0.5)
    assert [bool(found.any()) for found in warped] == [True, True, True, False]
