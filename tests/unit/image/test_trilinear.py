"""Linear interpolation in one compiled pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.resample import sample_grid
from hepalign.image.trilinear import VoxelMap, read_linear
from hepalign.transform import linear

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(6, 7, 8, 2)).astype(np.float32)


def read(indices: object, image: NDArray[np.float32] = IMAGE, **words: NDArray[np.float32]) -> NDArray[np.float32]:
    places = np.asarray(indices, dtype=np.float32).reshape(-1, 1, 1, 3)
    out = np.empty((len(places), 1, 1, image.shape[3]), np.float32)
    read_linear(image, VoxelMap.of_indices(places), out, **words)
    return out[:, 0, 0]


def test_it_reads_what_the_differentiable_kernel_reads() -> None:
    indices = RNG.uniform(-3, 10, (500, 3)).astype(np.float32)
    image = torch.from_numpy(IMAGE).movedim(-1, 0)[None]
    places = torch.from_numpy(indices)[None, :, None, None].requires_grad_()
    expected = sample_grid(image, places)[0, :, :, 0, 0].T.detach()
    np.testing.assert_allclose(read(indices), expected.numpy(), atol=2e-5)


def test_voxel_centres_are_read_exactly() -> None:
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in IMAGE.shape[:3]], indexing="ij"), axis=-1)
    np.testing.assert_array_equal(read(indices), IMAGE.reshape(-1, 2))


def test_outside_begins_half_a_voxel_beyond_the_outermost_centres() -> None:
    fills = np.array([11.0, 12.0], np.float32)
    inside, beyond = [(-0.5, 0, 0), (0, 6.49, 0), (0, 0, 7.49)], [(-0.51, 0, 0), (0, 6.5, 0), (0, 0, 7.5)]
    np.testing.assert_array_equal(read(inside, fills=fills), [IMAGE[0, 0, 0], IMAGE[0, 6, 0], IMAGE[0, 0, 7]])
    np.testing.assert_array_equal(read(beyond, fills=fills), np.tile(fills, (3, 1)))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("axis", range(3))
def test_a_place_that_is_nowhere_is_outside(number: float, axis: int) -> None:
    index = np.ones(3)
    index[axis] = number
    fills = np.array([11.0, 12.0], np.float32)
    np.testing.assert_array_equal(read(index, fills=fills), fills[None])
    # without a fill as well no memory is read that is not the image's
    assert not np.isnan(number) or np.isnan(read(index)).all()


def test_the_border_grows_by_what_is_told_for_each_voxel_beyond() -> None:
    growth = RNG.normal(size=(3, 2)).astype(np.float32)
    expected = IMAGE[5, 3, 0] + 2 * growth[0] - 1.5 * growth[2]
    np.testing.assert_allclose(read((7, 3, -1.5), growth=growth)[0], expected, atol=1e-5)
    np.testing.assert_array_equal(read((5, 3, 0), growth=growth)[0], IMAGE[5, 3, 0])


def test_vectors_turn_and_matrix_add_up_as_the_slabs_have_them() -> None:
    read_from = Geometry.from_spacing((6, 7, 8), (2, 1, 3), direction=linear.rotation((20, 9, -30))[:3, :3])
    grid = Geometry.from_spacing((5, 4, 9), 1.5, origin_mm=(1, -2, 3))
    vectors = RNG.normal(size=(5, 4, 9, 3)).astype(np.float32)
    vectors.flags.writeable = False
    places = VoxelMap.between(read_from, grid, vectors)
    (indices,) = (piece for _, piece in places.slabs())
    np.testing.assert_allclose(indices, read_from.world_to_index(grid.grid_mm() + vectors), atol=1e-4)
    image = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (6, 7, 8)], indexing="ij"), axis=-1)
    out = np.empty((5, 4, 9, 3), np.float32)
    # an image of its own indices that goes on beyond its border reads the places themselves
    read_linear(image, places, out, growth=np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(out, indices, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7, 8), (6, 1, 8), (6, 7, 1), (1, 1, 1)])
def test_planes_and_lines_are_read(shape: tuple[int, int, int]) -> None:
    image = IMAGE[: shape[0], : shape[1], : shape[2]]
    corner = image[0, 0, 0]
    for axis in range(3):
        index = np.eye(3)[axis].astype(int)
        neighbour = image[tuple(np.minimum(index, np.array(shape) - 1))]
        np.testing.assert_allclose(read(index * 0.25, image)[0], 0.75 * corner + 0.25 * neighbour, atol=1e-6)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = RNG.uniform(-3, 10, (1001, 3))
    alone = read(indices)
    monkeypatch.setattr("hepalign.image.trilinear.PARALLEL_VOXELS", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    np.testing.assert_array_equal(read(indices), alone)


READS_ONE = """
import numpy as np
from hepalign.image.trilinear import VoxelMap, read_linear
out = np.empty((1, 1, 1, 1), np.float32)
read_linear(np.ones((2, 2, 2, 1), np.float32), VoxelMap((1, 1, 1), np.eye(4)), out)
print(out.item())
"""


@pytest.mark.parametrize("directory", ["/proc/none", "kept"])
def test_it_reads_with_and_without_a_directory_to_keep_machine_code_in(directory: str, tmp_path: Path) -> None:
    kept = tmp_path / directory
    told = os.environ | {"NUMBA_CACHE_DIR": str(kept)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", READS_ONE], capture_output=True, text=True, env=told, check=False)
        assert done.stdout == "1.0\n", done.stderr
    assert bool(list(tmp_path.rglob("*.nbi"))) == (directory == "kept")
