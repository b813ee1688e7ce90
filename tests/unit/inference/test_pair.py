"""What refinement and network are shown of a pair: the hole, bone, an MR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.bundle import load_bundle
from hepalign.inference.pair import BONE_SHARE, Levels, make_pair
from hepalign.inference.register import register
from hepalign.inference.sampling import from_rows
from hepalign.inference.untrained import make_untrained_bundle
from hepalign.inference.workgrid import COARSEST_MM, WORK_SPACING_MM

GRID = Geometry.from_spacing((64, 64, 48), 2.8)
HOLE = (slice(24, 40), slice(24, 40), slice(16, 32))
BONE = (slice(44, 56), slice(44, 56), slice(32, 44))


def scan(seed: int) -> Volume:
    """Soft tissue of 60 HU with some texture, air around."""
    noise = np.random.default_rng(seed).normal(0, 15, GRID.shape)
    data = np.full(GRID.shape, -1000.0)
    data[4:-4, 4:-4, 4:-4] = 60 + noise[4:-4, 4:-4, 4:-4]
    return Volume(data.astype(np.float32), GRID)


def with_block(volume: Volume, block: tuple[slice, slice, slice], hu: float) -> Volume:
    data = volume.as_float().copy()
    data[block] = hu
    return volume.with_data(data)


def test_coarse_cts_are_matched_on_a_coarser_grid_and_an_mr_is_not() -> None:
    coarse = Geometry.from_spacing(GRID.shape, 4.5)
    moving, fixed = (Volume(scan(seed).as_float(), coarse) for seed in (0, 1))
    spacings_mm = {
        modality: float(np.mean(make_pair(moving, fixed, np.eye(4), None, modality).work.spacing_mm))
        for modality in ("ct", "mr")
    }
    assert spacings_mm["ct"] == pytest.approx(COARSEST_MM, rel=0.1)
    assert spacings_mm["mr"] == pytest.approx(WORK_SPACING_MM, rel=0.1)


def test_the_network_sees_no_probe() -> None:
    moving, fixed, mask = scan(0), scan(1), np.zeros(GRID.shape, bool)
    mask[HOLE] = True
    shown = []
    for hu in (60.0, 3000.0):
        pair = make_pair(moving, with_block(fixed, HOLE, hu), np.eye(4), Volume(mask, GRID))
        levels = Levels(pair)
        shown.append(levels.network_inputs(torch.zeros(*levels.half_shape, 3)))
        hidden = from_rows(levels.half[2])[0, 0] == 0
        was, now = (part[0][:, hidden] for part in shown[-1].split(1))
        assert torch.equal(was, now)
    assert hidden.any()
    assert not hidden.all()


def test_of_the_coarse_mask_only_metal_its_shadow_and_their_neighbours_are_left_out() -> None:
    moving, fixed, mask = scan(0), scan(1), np.zeros(GRID.shape, bool)
    mask[HOLE] = True
    needle = (slice(31, 33), slice(31, 33), slice(16, 32))
    shadow = (slice(26, 28), slice(36, 38), slice(20, 22))
    metal_outside = (slice(44, 46), slice(44, 46), slice(20, 22))
    shown = with_block(with_block(with_block(fixed, needle, 3000.0), shadow, -500.0), metal_outside, 3000.0)
    weight = make_pair(moving, shown, np.eye(4), Volume(mask, GRID)).weight[0, 0].numpy()
    for block in (needle, shadow):
        near = tuple(slice(part.start - 1, part.stop + 1) for part in block)
        assert (weight[near] == 0).all()
    assert weight[24:30, 24:26, 16:32].all()
    assert weight[metal_outside].all(), "what the mask does not cover is no probe"
    assert weight[HOLE].mean() > 0.5


def test_bone_of_either_ct_counts_little_in_refinement_and_soft_tissue_in_full() -> None:
    for bony in (0, 1):
        images = [scan(0), scan(1)]
        images[bony] = with_block(images[bony], BONE, 900.0)
        levels = Levels(make_pair(images[0], images[1], np.eye(4), None))
        origin = np.rint(
            levels.half_geometry.world_to_index(GRID.index_to_world(np.array([[50, 50, 38], [20, 20, 14]])))
        )
        bone, soft = (levels.refine_weight[tuple(int(i) for i in place)].item() for place in origin)
        assert bone == pytest.approx(BONE_SHARE)
        assert soft == 1


def test_an_mr_of_a_small_part_of_the_body_is_compared_more_finely_and_two_cts_are_not() -> None:
    fine = Geometry.from_spacing(GRID.shape, 2.0)
    for modality, grid, expected_mm in (("mr", fine, 2.0), ("ct", fine, 2.8), ("mr", GRID, 2.8), ("ct", GRID, 2.8)):
        images = [Volume(scan(seed).data, grid) for seed in (0, 1)]
        work = make_pair(images[0], images[1], np.eye(4), None, modality).whole  # type: ignore[arg-type]
        # in multiples of 16 voxels over the box
        assert np.mean(work.spacing_mm) == pytest.approx(expected_mm, rel=0.12)


def test_the_network_is_not_asked_about_an_mr(tmp_path: Path) -> None:
    bundle = load_bundle(make_untrained_bundle(tmp_path))
    ct = scan(0)
    assert "network" in register(bundle, scan(1), ct, engine="fast").method
    assert register(bundle, scan(1), ct, engine="fast", modality="mr").method == "affine+coarse+short-refine"
