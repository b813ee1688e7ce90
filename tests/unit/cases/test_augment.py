from __future__ import annotations

import numpy as np
import pytest
import torch

from hepalign.cases import augment
from hepalign.transform.warp import warp_tensor


def test_a_turn_is_a_rotation_times_a_zoom() -> None:
    turn = augment.random_turn(np.random.default_rng(0), 30, 0.2)
    zoom = np.cbrt(np.linalg.det(turn))
    assert 0.8 <= zoom <= 1.2
    np.testing.assert_allclose(turn @ turn.T, zoom**2 * np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(augment.random_turn(np.random.default_rng(0), 0, 0), np.eye(3))


def test_a_turn_about_the_middle_leaves_it() -> None:
    turn = augment.random_turn(np.random.default_rng(1), 40, 0.1)
    matrix = augment.affine_about((9, 7, 5), turn, np.array([1.0, 2.0, 3.0]))
    middle = torch.tensor([4.0, 3.0, 2.0])
    assert torch.allclose(augment.mapped(matrix, middle), middle + torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)


def test_sampling_at_the_grid_is_the_image() -> None:
    image = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    found = augment.sampled(image, augment.index_grid((8, 9, 10)))
    np.testing.assert_allclose(found[0].numpy(), image, atol=1e-5)


def test_a_patch_is_read_where_it_lies_and_filled_outside() -> None:
    image = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    at = augment.index_grid((4, 4, 4)) + torch.tensor([8.0, 2.0, 3.0])
    found = augment.sampled(image, at, outside=-1.0)[0].numpy()
    np.testing.assert_allclose(found[:2], image[8:10, 2:6, 3:7], atol=1e-3)
    assert (found[3] == -1).all()
    far = augment.sampled(image, at + 100, outside=-1.0)
    assert (far == -1).all()


@pytest.mark.parametrize("shape", [(32, 32, 32), (20, 48, 12)])
def test_a_smooth_warp_keeps_to_its_amplitude_and_does_not_fold(shape: tuple[int, int, int]) -> None:
    for seed in range(5):
        warp = augment.smooth_warp(np.random.default_rng(seed), shape, 3.0, 14.0).numpy()
        assert warp.shape == (*shape, 3)
        assert np.abs(warp).max() == pytest.approx(3.0, rel=1e-4)
        gradients = np.stack(np.gradient(warp, axis=(0, 1, 2)), axis=-1)
        assert np.linalg.det(np.eye(3) + gradients).min() > 0


def test_a_smooth_warp_moves_an_image_as_warp_tensor_does() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32))
    warp = augment.smooth_warp(np.random.default_rng(1), (16, 16, 16), 2.0, 8.0)
    ours = augment.sampled(image.numpy(), augment.index_grid((16, 16, 16)) + warp)
    theirs = warp_tensor(image[None], warp.permute(3, 0, 1, 2)[None], padding="zeros")[0]
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_intensity_changes_stay_in_the_scale() -> None:
    rng = np.random.default_rng(0)
    image = torch.linspace(-1, 1, 512).reshape(1, 8, 8, 8)
    for changed in (
        augment.contrast(rng, image, 0.5),
        augment.bias_field(rng, image, 0.5),
        augment.noisy(rng, image, 0.5),
        augment.blurred(image, 1.0),
    ):
        assert changed.shape == image.shape
        assert changed.abs().max() <= 1 + 1e-6
        assert not torch.equal(changed, image)


def test_no_strength_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image = torch.linspace(-1, 1, 512).reshape(1, 8, 8, 8)
    for same in (augment.contrast(rng, image, 0), augment.bias_field(rng, image, 0), augment.noisy(rng, image, 0)):
        assert torch.allclose(same, image, atol=1e-6)


def test_a_contrast_phase_keeps_the_order_of_tissues() -> None:
    image = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
    changed = augment.contrast(np.random.default_rng(3), image, 0.5)
    assert (changed.flatten().diff() >= 0).all()


def test_a_blur_keeps_constants_and_spreads_a_point_as_a_gaussian() -> None:
    assert torch.allclose(augment.blurred(torch.full((1, 9, 9, 9), 0.3), 1.0), torch.tensor(0.3))
    point = torch.zeros(1, 15, 15, 15)
    point[0, 7, 7, 7] = 1
    blurred = augment.blurred(point, 1.0)[0]
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert blurred[7, 7, 8] / blurred[7, 7, 7] == pytest.approx(np.exp(-0.5), abs=1e-5)


def test_nothing_draws_from_the_global_generators() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state().clone()
    rng = np.random.default_rng(0)
    image = torch.zeros(1, 8, 8, 8)
    augment.contrast(rng, image, 0.5)
    augment.bias_field(rng, image, 0.5)
    augment.noisy(rng, image, 0.5)
    augment.smooth_warp(rng, (8, 8, 8), 1, 4)
    assert torch.equal(torch.get_rng_state(), before)
