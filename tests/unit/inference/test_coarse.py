from __future__ import annotations

import torch
import torch.nn.functional as F

from hepalign.inference.coarse import CoarseSettings, coarse_fit
from hepalign.inference.sampling import index_rows, read_at, smooth_rows, to_rows
from hepalign.losses.similarity import mind_ssc


def tables(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moving and fixed features and the true field: a bump of two voxels."""
    generator = torch.Generator().manual_seed(seed)
    image = smooth_rows(torch.randn(32, 28, 24, 1, generator=generator), 1.2)
    grid = index_rows(image.shape)
    centre = torch.tensor([16.0, 14.0, 12.0])
    bump = torch.exp(-0.5 * ((grid - centre) / 5).square().sum(-1, keepdim=True))
    truth = bump * torch.tensor([2.0, -1.0, 1.0])
    fixed = read_at(image, grid + truth)
    moving_features, fixed_features = (to_rows(mind_ssc(rows.permute(3, 0, 1, 2)[None])) for rows in (image, fixed))
    return moving_features, fixed_features, truth


def test_a_smooth_warp_is_recovered() -> None:
    moving, fixed, truth = tables()
    done = coarse_fit(moving, fixed, torch.ones(*truth.shape[:3], 1), torch.zeros_like(truth), CoarseSettings(steps=20))
    where = truth.norm(dim=-1) > 0.5
    before, after = truth[where].norm(dim=-1).mean(), (done.field - truth)[where].norm(dim=-1).mean()
    assert after < 0.3 * before
    assert done.cost_after < 0.5 * done.cost_before


def test_what_weighs_nothing_changes_nothing() -> None:
    moving, fixed, truth = tables()
    weight = torch.ones(*truth.shape[:3], 1)
    weight[12:20, 10:18, 8:16] = 0
    garbage = fixed.clone()
    garbage[12:20, 10:18, 8:16] = torch.rand(8, 8, 8, fixed.shape[-1])
    # slopes at the hole's rim reach one voxel in: the rim is outside the weight as well
    rim = -F.max_pool3d(-weight[..., 0][None, None], 3, 1, 1)[0, 0][..., None]
    settings = CoarseSettings(steps=4)
    clean = coarse_fit(moving, fixed, rim, torch.zeros_like(truth), settings).field
    dirty = coarse_fit(moving, garbage, rim, torch.zeros_like(truth), settings).field
    torch.testing.assert_close(clean, dirty, rtol=0, atol=1e-5)


def test_a_plateau_ends_it() -> None:
    _, fixed, truth = tables()
    weight = torch.ones(*truth.shape[:3], 1)
    same = coarse_fit(fixed, fixed, weight, torch.zeros_like(truth), CoarseSettings(steps=50))
    assert same.steps < 10
