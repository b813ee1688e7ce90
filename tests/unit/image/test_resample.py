from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from hepalign.image.geometry import Geometry
from hepalign.image.read import read_volume
from hepalign.image.resample import resample, sample_grid
from hepalign.image.trilinear import VoxelMap
from hepalign.image.volume import Volume
from hepalign.transform import linear
from hepalign.transform.linear import RAS_LPS

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def oriented(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels at the same places, stored along other axes."""
    data = np.transpose(volume.data, order)
    affine = volume.geometry.affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            data = np.flip(data, axis)
            affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(data), Geometry(data.shape, affine))  # type: ignore[arg-type]


def as_sitk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    affine, spacing = RAS_LPS @ volume.geometry.affine, volume.geometry.spacing_mm
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.asarray(spacing)).ravel().tolist())
    return image


def oblique(shape: tuple[int, int, int], seed: int) -> Geometry:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return Geometry.from_spacing(shape, (1.3, 2.0, 4.0), direction=turn, origin_mm=-(turn * (1.3, 2, 4)) @ shape / 2)


def noise(geometry: Geometry, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32), geometry)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_hold_the_same_image(order: tuple[int, ...], signs: tuple[int, ...], mode: str) -> None:
    volume = noise(oblique((5, 6, 7), 3))
    back = resample(oriented(volume, order, signs), volume.geometry, mode=mode)  # type: ignore[arg-type]
    np.testing.assert_allclose(back.data, volume.data, atol=2e-5)


@pytest.mark.parametrize(("mode", "interpolator"), [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)])
def test_simpleitk_resamples_alike_border_included(mode: str, interpolator: int) -> None:
    moving, target = noise(oblique((12, 14, 10), 1)), oblique((15, 9, 13), 2)
    ours = resample(moving, target, mode=mode, fill=-7.0)  # type: ignore[arg-type]
    reference = as_sitk(noise(target))
    theirs = sitk.Resample(as_sitk(moving), reference, sitk.Transform(), interpolator, -7.0)
    difference = np.abs(ours.data - sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    # A coordinate that rounds across a face may fall on the other side: allow one voxel in a thousand.
    assert np.quantile(difference, 0.999) < 1e-3 * np.ptp(moving.data)
    assert (ours.data == -7.0).mean() > 0.05


def test_a_linear_ramp_is_exact_between_voxels() -> None:
    grid, target = oblique((9, 9, 9), 4), Geometry.from_spacing((4, 4, 4), 0.7, origin_mm=(-1, -1, -1))
    ramp = (grid.grid_mm() @ [1.0, -2.0, 0.5]).astype(np.float32)
    read = resample(Volume(ramp, grid), target)
    np.testing.assert_allclose(read.data, target.grid_mm() @ [1.0, -2.0, 0.5], atol=1e-4)


def test_outside_is_filled_with_the_lowest_value_unless_told() -> None:
    volume = noise(Geometry.from_spacing((4, 4, 4), 1.0))
    far = Geometry.from_spacing((2, 2, 2), 1.0, origin_mm=(50, 0, 0))
    assert (resample(volume, far).data == volume.data.min()).all()
    assert (resample(volume, far, fill=3.0).data == 3.0).all()


def test_nearest_keeps_labels_and_masks_as_they_are() -> None:
    grid = Geometry.from_spacing((4, 4, 4), 1.0)
    labels = Volume(np.arange(64, dtype=np.int32).reshape(4, 4, 4) + 20_000_000, grid)
    fine = resample(labels, grid.with_shape((8, 8, 8)), mode="nearest")
    assert fine.data.dtype == np.int32
    np.testing.assert_array_equal(fine.data[::2, ::2, ::2], labels.data)
    mask = Volume(labels.data % 2 == 0, grid)
    assert resample(mask, grid.with_shape((8, 8, 8)), mode="nearest").data.dtype == np.bool_


def test_a_single_slice_can_be_read() -> None:
    volume = noise(Geometry.from_spacing((6, 6, 1), (1, 1, 5)))
    read = resample(volume, Geometry.from_spacing((6, 6, 3), (1, 1, 2), origin_mm=(0, 0, -2)))
    for k in range(3):
        np.testing.assert_allclose(read.data[..., k], volume.data[..., 0], atol=1e-5)


def test_read_only_voxels_are_left_alone(recwarn: pytest.WarningsRecorder) -> None:
    volume = noise(Geometry.from_spacing((4, 4, 4), 1.0))
    volume.data.flags.writeable = False
    resample(volume, volume.geometry.with_shape((5, 5, 5)))
    assert not recwarn.list


def test_slabs_cover_the_grid_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepalign.image.trilinear.CHUNK_VOXELS", 50)
    matrix = oblique((7, 5, 6), 5).affine
    pieces = [piece for _, piece in VoxelMap((7, 5, 6), matrix).slabs()]
    assert len(pieces) == 7
    np.testing.assert_allclose(torch.cat(pieces).numpy(), oblique((7, 5, 6), 5).grid_mm(), atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_sampling_is_the_same_with_and_without_gradients(channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 5, 6, 7, generator=generator)
    if channels_last:
        image = image.to(memory_format=torch.channels_last_3d)
    indices = torch.rand(2, 4, 3, 2, 3, generator=generator) * 10 - 2
    followed = sample_grid(image, indices.clone().requires_grad_())
    assert followed.requires_grad
    torch.testing.assert_close(sample_grid(image, indices), followed.detach(), atol=2e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(sample_grid(image, indices), followed.detach(), atol=2e-5, rtol=0)


def test_sampling_has_the_gradient_of_linear_interpolation() -> None:
    image = torch.randn(1, 1, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([1.25, 2.5, 3.0]).reshape(1, 1, 1, 1, 3).requires_grad_()
    sample_grid(image, indices).sum().backward()
    along_i = image[0, 0, 2, 2:4, 3].mean() - image[0, 0, 1, 2:4, 3].mean()
    assert indices.grad is not None
    assert indices.grad.flatten()[0].item() == pytest.approx(along_i.item(), abs=1e-5)


def test_a_real_thick_mr_is_resampled_as_simpleitk_does(real_data: Path) -> None:
    path = next((real_data / "chaos-mr").glob("*/t2.nii.gz"))
    moving = read_volume(path)
    centre = moving.geometry.centre_mm
    turn = linear.rotation((5, -10, 20))[:3, :3]
    target = Geometry.from_spacing((48, 40, 36), 5.0, direction=turn, origin_mm=centre - 5 * turn @ (24, 20, 18))
    ours = resample(moving, target, fill=0.0)
    theirs = sitk.Resample(sitk.ReadImage(str(path), sitk.sitkFloat32), as_sitk(ours), sitk.Transform())
    difference = np.abs(ours.data - sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    assert np.quantile(difference, 0.999) < 1e-3 * np.ptp(moving.data)
