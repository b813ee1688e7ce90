"""Motions are maps one can go and come back by, the sliding wall included."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.cases.phantom import PhantomConfig
from hepalign.cases.phantom.anatomy import draw_anatomy
from hepalign.cases.phantom.make import Streams, draw_motions
from hepalign.cases.phantom.motion import Motion

CLOSES_MM = 0.1


@pytest.fixture(scope="module")
def motions() -> list[Motion]:
    config = PhantomConfig(breathing_mm=(20, 25))
    anatomy = draw_anatomy(Streams(1).get("anatomy"), config)
    drawn = draw_motions(Streams(1).get("motion"), anatomy, config)
    return [drawn["pmr"], drawn["ict"]]


@pytest.fixture(scope="module")
def points() -> NDArray[np.float32]:
    half_mm = np.array([[150], [120], [120]], np.float32)
    drawn: NDArray[np.float32] = np.random.default_rng(0).uniform(-1, 1, (3, 60_000)).astype(np.float32) * half_mm
    return drawn


def test_every_point_comes_back(motions: list[Motion], points: NDArray[np.float32]) -> None:
    for motion in motions:
        gaps = np.linalg.norm(motion.from_anatomy(motion.to_anatomy(points)) - points, axis=0)
        assert gaps.max() < CLOSES_MM


def test_every_point_of_the_anatomy_comes_back(motions: list[Motion], points: NDArray[np.float32]) -> None:
    for motion in motions:
        gaps = np.linalg.norm(motion.to_anatomy(motion.from_anatomy(points)) - points, axis=0)
        assert gaps.max() < CLOSES_MM


def test_nothing_slides_through_the_wall(motions: list[Motion], points: NDArray[np.float32]) -> None:
    for motion in motions:
        assert motion.cavity is not None
        assert motion.slide is not None
        still = Motion(np.eye(4), None, None, motion.slide, motion.slide_back, motion.cavity)
        before, after = (motion.cavity.read(p)[0] < 0 for p in (points, still.to_anatomy(points)))
        np.testing.assert_array_equal(before, after)
        # A wall that carries organs by two centimetres, and moves nothing outside.
        assert np.abs(still.to_anatomy(points) - points)[:, before].max() > 10
        np.testing.assert_array_equal(still.to_anatomy(points)[:, ~before], points[:, ~before])


def test_near_the_wall_the_distance_to_it_stays(motions: list[Motion], points: NDArray[np.float32]) -> None:
    for motion in motions:
        assert motion.cavity is not None
        still = Motion(np.eye(4), None, None, motion.slide, motion.slide_back, motion.cavity)
        depth = motion.cavity.read(points)[0]
        near = (depth < 0) & (depth > -1)
        drift = np.abs(motion.cavity.read(still.to_anatomy(points[:, near]))[0] - depth[near])
        assert np.quantile(drift, 0.99) < 0.1
