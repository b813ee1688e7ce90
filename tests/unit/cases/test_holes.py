from __future__ import annotations

import numpy as np
import pytest

from hepalign.cases.augment import index_grid
from hepalign.cases.holes import Hole, random_hole

GRID = index_grid((40, 40, 40))


def test_a_capsule_has_a_capsules_volume() -> None:
    hole = Hole(np.array([20.0, 20, 10]), np.array([20.0, 20, 30]), radius=6, square=False)
    wanted = np.pi * 6**2 * 20 + 4 / 3 * np.pi * 6**3
    assert hole.inside(GRID).sum().item() == pytest.approx(wanted, rel=0.03)


def test_a_beam_has_a_beams_volume() -> None:
    hole = Hole(np.array([20.0, 20, 10]), np.array([20.0, 20, 30]), radius=5, square=True)
    assert hole.inside(GRID).sum().item() == pytest.approx(11 * 11 * 31)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_hole_ends_at_its_tip(seed: int) -> None:
    tip = np.array([20.0, 18, 22])
    hole = random_hole(np.random.default_rng(seed), tip, 2.0, (4, 10), (20, 60))
    assert hole.inside(GRID)[20, 18, 22]
    assert 2 <= hole.radius <= 5
    assert 10 <= np.linalg.norm(hole.entry - tip) <= 30
