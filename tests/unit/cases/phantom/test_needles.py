"""Courses are planned: bone and lung are spared where a way round them is left."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.cases.phantom.needles import Needle, draw_needles
from hepalign.cases.phantom.shapes import cone

TARGET = np.array([40.0, 10.0, 0.0])
RIBS = [np.array([0.0, 0.0, z]) for z in (-50.0, -25.0, 0.0, 25.0, 50.0)]


def _skin(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.hypot(points[0], points[1]) - 130, np.float32)


def _caged(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rings of bone of 10 mm every 25 mm, as ribs are."""
    across = np.hypot(points[0], points[1]) - 110
    bone = np.min([np.hypot(across, points[2] - ring[2]) for ring in RIBS], axis=0) < 5
    return np.where(bone, np.float32(600), np.float32(50))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_needles_pass_between_ribs(count: int) -> None:
    for seed in range(12):
        for needle in draw_needles(np.random.default_rng(seed), count, TARGET, _skin, _caged):
            along = np.linspace(0, 1, 400)
            points = (needle.tip + along[:, None] * (needle.tail - needle.tip)).T.astype(np.float32)
            assert (_caged(points) < 300).all()


def test_where_all_is_bone_the_needle_still_comes() -> None:
    needles = draw_needles(np.random.default_rng(0), 2, TARGET, _skin, lambda p: np.full(p.shape[1:], 700, np.float32))
    assert len(needles) == 2
    assert all(isinstance(needle, Needle) for needle in needles)


def test_needles_reach_the_target_from_outside_the_skin() -> None:
    for seed in range(12):
        for needle in draw_needles(np.random.default_rng(seed), 3, TARGET, _skin, _caged):
            near = cone(TARGET[:, None].astype(np.float32), needle.tip, needle.tail, 0, 0)
            assert near[0] < 24
            assert _skin(needle.tail[:, None].astype(np.float32))[0] > 0
