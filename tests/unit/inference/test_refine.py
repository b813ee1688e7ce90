from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hepalign.inference.pair import rescaled
from hepalign.inference.refine import _solved, _times, refine
from hepalign.inference.sampling import index_rows, read_at, smooth_rows, to_rows
from hepalign.losses.similarity import voxel_mind

SHAPE = (32, 28, 24)
CONTROL = (16, 14, 12)
SPACING_MM = 5.6
CENTRE = torch.tensor([15.5, 13.5, 11.5])


def bump() -> torch.Tensor:
    """A displacement of up to two voxels in the middle."""
    height = torch.exp(-0.5 * ((index_rows(SHAPE) - CENTRE) / 5).square().sum(-1, keepdim=True))
    return height * torch.tensor([2.0, -1.0, 1.0])


def stretch() -> torch.Tensor:
    """4 % longer along the first axis, and sheared."""
    away = index_rows(SHAPE) - CENTRE
    return torch.stack([0.04 * away[..., 0], 0.05 * away[..., 0], torch.zeros(SHAPE)], -1)


def tables(truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a random texture, and of the same under the field."""
    generator = torch.Generator().manual_seed(0)
    image = smooth_rows(torch.randn(*SHAPE, 1, generator=generator), 1.2)
    warped = read_at(image, index_rows(SHAPE) + truth)
    moving, fixed = (to_rows(voxel_mind(rows.permute(3, 0, 1, 2)[None])) for rows in (image, warped))
    return moving, fixed


def everywhere() -> torch.Tensor:
    return torch.ones(*SHAPE, 1)


def still() -> torch.Tensor:
    return torch.zeros(*CONTROL, 3)


@pytest.mark.parametrize("truth", [bump(), stretch()], ids=["bump", "stretch"])
def test_a_smooth_warp_is_recovered(truth: torch.Tensor) -> None:
    found = rescaled(refine(*tables(truth), everywhere(), still(), SPACING_MM, 8), SHAPE)
    where = truth.norm(dim=-1) > 0.5
    assert (found - truth)[where].norm(dim=-1).mean() < 0.2 * truth[where].norm(dim=-1).mean()


def test_a_field_goes_on_through_a_hole_in_which_nothing_can_be_compared() -> None:
    truth = stretch()
    moving, fixed = tables(truth)
    weight = everywhere()
    weight[20:30, 8:20, 6:18] = 0
    fixed[20:30, 8:20, 6:18] = torch.rand(10, 12, 12, fixed.shape[-1], generator=torch.Generator().manual_seed(1))
    rim = -F.max_pool3d(-weight[..., 0][None, None], 3, 1, 1)[0, 0][..., None]
    found = rescaled(refine(moving, fixed, rim, still(), SPACING_MM, 8), SHAPE)
    inside = weight[..., 0] == 0
    assert (found - truth)[inside].norm(dim=-1).mean() < 0.25 * truth[inside].norm(dim=-1).mean()


def test_what_weighs_nothing_changes_nothing() -> None:
    moving, fixed = tables(bump())
    weight = everywhere()
    weight[12:20, 10:18, 8:16] = 0
    garbage = fixed.clone()
    garbage[12:20, 10:18, 8:16] = torch.rand(8, 8, 8, fixed.shape[-1], generator=torch.Generator().manual_seed(1))
    # slopes at the hole's rim reach one voxel in: the rim is outside the weight as well
    rim = -F.max_pool3d(-weight[..., 0][None, None], 3, 1, 1)[0, 0][..., None]
    clean, dirty = (refine(moving, image, rim, still(), SPACING_MM, 4) for image in (fixed, garbage))
    torch.testing.assert_close(clean, dirty, rtol=0, atol=1e-5)


def test_a_passed_deadline_ends_it_and_equal_images_stay() -> None:
    moving, fixed = tables(bump())
    late = refine(moving, fixed, everywhere(), still(), SPACING_MM, 8, time.perf_counter() - 1)
    assert torch.equal(late, still())
    assert torch.equal(refine(fixed, fixed, everywhere(), still(), SPACING_MM, 2), still())
    nowhere = refine(moving, fixed, torch.zeros(*SHAPE, 1), still(), SPACING_MM, 2)
    assert torch.equal(nowhere, still())


def test_a_step_solves_its_linear_system() -> None:
    """Against the dense system, the bending energy written as what it is: the summed square of the Laplacian."""
    shape, stiffness, damping = (4, 3, 3), 0.3, 0.05
    n = int(np.prod(shape))
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(n, 3, 3))
    blocks = roots @ roots.transpose(0, 2, 1)
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    matrix = torch.from_numpy(np.stack([blocks[:, a, b] for a, b in order]).reshape(6, *shape)).float()
    laplacian = np.zeros((n, n))
    for row, place in enumerate(np.ndindex(shape)):
        for axis in range(3):
            for side in (-1, 1):
                other = list(place)
                other[axis] += side
                if 0 <= other[axis] < shape[axis]:
                    laplacian[row, row] -= 1
                    laplacian[row, np.ravel_multi_index(other, shape)] += 1
    dense = np.kron(np.eye(3), stiffness * laplacian.T @ laplacian) + damping * np.eye(3 * n)
    for a in range(3):
        for b in range(3):
            dense[a * n : (a + 1) * n, b * n : (b + 1) * n] += np.diag(blocks[:, a, b])
    right = generator.normal(size=(3, *shape))
    solution = _solved(matrix, torch.from_numpy(right).float(), stiffness, damping).numpy()
    expected = np.linalg.solve(dense, right.reshape(-1)).reshape(3, *shape)
    assert np.abs(solution - expected).max() < 0.03 * np.abs(expected).max()
    identity = torch.zeros(6, *shape)
    identity[:3] = 1
    assert torch.equal(_times(identity, torch.from_numpy(right)), torch.from_numpy(right))
