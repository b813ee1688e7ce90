from __future__ import annotations

import numpy as np
import pytest

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap
from hepalign.inference.quality import Evidence, dice, hidden_share, judge, margin_coverage, tumour_names

GOOD = {
    "similarity_after": 0.985,
    "inverse_consistency_mm": 0.4,
    "liver_dice": 0.95,
    "outside_fraction": 0.05,
    "folding_fraction": 0.0,
    "strain": 0.15,
    "jacobian_min": 0.4,
    "jacobian_max": 2.0,
}


def test_good_evidence_is_accepted_without_reasons() -> None:
    assert judge(Evidence(**GOOD)) == ("accept", [])


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"liver_dice": 0.8}, "review"),
        ({"liver_dice": 0.3}, "reject"),
        ({"outside_fraction": 0.5}, "review"),
        ({"outside_fraction": 0.9}, "reject"),
        ({"folding_fraction": 1e-6}, "reject"),
        ({"similarity_after": 0.5}, "reject"),
        ({"inverse_consistency_mm": 50.0}, "reject"),
        ({"strain": 0.26}, "review"),
        ({"strain": 0.5}, "reject"),
        ({"uncertainty_mm": 9.0}, "review"),
        ({"failed": "nothing could be computed"}, "reject"),
    ],
)
def test_each_poor_measure_shows(changed: dict[str, object], status: str) -> None:
    found, reasons = judge(Evidence(**{**GOOD, **changed}))
    assert found == status
    assert len(reasons) == 1


def test_a_reject_is_never_softened_by_a_review() -> None:
    status, reasons = judge(Evidence(**{**GOOD, "similarity_after": 0.5, "liver_dice": 0.8, "uncertainty_mm": 9.0}))
    assert status == "reject"
    assert len(reasons) == 3


def test_dice_and_hidden_share() -> None:
    a, b = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    a[:2], b[1:3] = True, True
    assert dice(a, b) == pytest.approx(0.5)
    assert hidden_share(a, b) == pytest.approx(0.5)
    assert dice(np.zeros_like(a), np.zeros_like(a)) == 0.0


def test_margins_are_covered_by_a_sphere_as_far_as_it_reaches() -> None:
    geometry = Geometry.from_spacing((41, 41, 41), 1.0, origin_mm=(-20, -20, -20))
    distance = np.linalg.norm(geometry.grid_mm(), axis=-1)
    covered = margin_coverage(Volume(distance <= 5, geometry), Volume(distance <= 12, geometry))
    assert covered["0_mm"] == 1.0
    assert covered["5_mm"] == 1.0
    # a sphere of 15 mm, of which one of 12 mm is covered
    assert covered["10_mm"] == pytest.approx((12 / 15) ** 3, abs=0.03)


def test_tumours_are_named() -> None:
    volume = Volume(np.zeros((2, 2, 2), np.uint8), Geometry.from_spacing((2, 2, 2), 1.0))
    assert tumour_names(LabelMap(volume, {1: "liver", 2: "tumour 1", 3: "tumour 2"})) == {"tumour 1": 2, "tumour 2": 3}
