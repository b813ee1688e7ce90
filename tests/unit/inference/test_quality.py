from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap
from hepalign.inference.quality import (
    ErrorModel,
    Evidence,
    PatientModel,
    dice,
    error_model,
    hidden_share,
    judge,
    margin_coverage,
    tumour_names,
)

GOOD = {
    "similarity_before": 0.96,
    "similarity_after": 0.985,
    "worst_similarity": 0.97,
    "inverse_consistency_mm": 0.4,
    "spread_mm": 0.5,
    "liver_dice": 0.95,
    "outside_fraction": 0.05,
    "folding_fraction": 0.0,
    "strain": 0.15,
    "jacobian_min": 0.4,
    "jacobian_max": 2.0,
}
# what the expected error and the question of two patients are computed from
MEASURED = GOOD.keys() - {"liver_dice", "outside_fraction", "folding_fraction", "jacobian_min", "jacobian_max"}
ONE_PATIENT = PatientModel(intercept=-1.0, weights={}, limit=0.0, least_gain=0.0, most_disagreement=0.0)
# an error of ten times the spread
MODEL = ErrorModel(
    intercept=np.log(10),
    weights={"spread_mm": 1.0},
    review_mm=8.0,
    reject_mm=16.0,
    tumour_scale=1.0,
    two_patients=ONE_PATIENT,
)


def test_good_evidence_is_accepted_without_reasons() -> None:
    assert MODEL.expected_error_mm(Evidence(**GOOD).measures()) == pytest.approx(5.0)
    assert judge(Evidence(**GOOD), MODEL) == ("accept", [])


@pytest.mark.parametrize("name", [name for name in GOOD if not name.startswith("jacobian")])
def test_a_measure_that_is_no_number_is_never_accepted(name: str) -> None:
    assert judge(Evidence(**GOOD | {name: float("nan")}))[0] == ("reject" if name in MEASURED else "review")


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"liver_dice": 0.8}, "review"),
        ({"liver_dice": 0.3}, "reject"),
        ({"outside_fraction": 0.5}, "review"),
        ({"outside_fraction": 0.9}, "reject"),
        ({"folding_fraction": 1e-6}, "reject"),
        ({"spread_mm": 1.0}, "review"),
        ({"spread_mm": 2.0}, "reject"),
        ({"uncertainty_mm": 9.0}, "review"),
        ({"failed": "nothing could be computed"}, "reject"),
    ],
)
def test_each_poor_measure_shows(changed: dict[str, object], status: str) -> None:
    found, reasons = judge(Evidence(**{**GOOD, **changed}), MODEL)
    assert found == status
    assert len(reasons) == 1


# two patients where the worst disagreement is above 0.1, or where a field gained less than a third of what there was
PATIENTS = PatientModel(
    intercept=-np.log(0.1),
    weights={"worst_disagreement": 1.0},
    limit=0.0,
    least_gain=np.log(1.5),
    most_disagreement=np.log(0.05),
)


@pytest.mark.parametrize(
    ("changed", "suspected"),
    [
        ({}, False),
        ({"worst_similarity": 0.89}, True),
        ({"worst_similarity": 0.91}, False),
        # they agreed already at the start, and still do: nothing to gain
        ({"similarity_before": 0.985}, False),
        # they agree poorly, and no better than at the start
        ({"similarity_before": 0.93, "similarity_after": 0.94}, True),
        # they agree poorly, but half the disagreement is gone
        ({"similarity_before": 0.88, "similarity_after": 0.94}, False),
    ],
)
def test_two_patients_are_a_question_of_their_own(changed: dict[str, float], suspected: bool) -> None:
    evidence = Evidence(**{**GOOD, **changed})
    status, reasons = judge(evidence, MODEL.model_copy(update={"two_patients": PATIENTS}))
    assert (status == "reject") == suspected
    assert [("two patients" in reason) for reason in reasons] == [True] * suspected
    assert judge(evidence, MODEL)[0] == "accept", "the expected error knows nothing of it"


# an MR and a CT of one patient agree less than two CTs do
GOOD_MR = {"similarity_before": 0.87, "similarity_after": 0.935, "worst_similarity": 0.87, "spread_mm": 6.0}
NOTHING_FITS = {"similarity_before": 0.87, "similarity_after": 0.9, "worst_similarity": 0.8, "spread_mm": 5.0}
NOTHING_FITS_MR = {"similarity_before": 0.83, "similarity_after": 0.86, "worst_similarity": 0.75, "spread_mm": 8.0}


@pytest.mark.parametrize(
    ("moving", "good", "nothing_fits"), [("ct", {}, NOTHING_FITS), ("mr", GOOD_MR, NOTHING_FITS_MR)]
)
def test_the_fitted_model_sees_two_patients_where_nothing_fits(
    moving: Literal["ct", "mr"], good: dict[str, float], nothing_fits: dict[str, float]
) -> None:
    patients = error_model(moving).two_patients
    assert patients.suspects(Evidence(**{**GOOD, **nothing_fits}).measures())
    assert not patients.suspects(Evidence(**{**GOOD, **good}).measures())


def test_a_reject_is_never_softened_by_a_review() -> None:
    status, reasons = judge(Evidence(**{**GOOD, "spread_mm": 5.0, "liver_dice": 0.8, "uncertainty_mm": 9.0}), MODEL)
    assert status == "reject"
    assert len(reasons) == 3


@pytest.mark.parametrize("moving", ["ct", "mr"])
def test_the_fitted_model_knows_its_measures_and_expects_more_of_worse_evidence(moving: Literal["ct", "mr"]) -> None:
    model = error_model(moving)
    assert set(model.weights) <= set(Evidence(**GOOD).measures())
    worse = {
        "similarity_after": 0.9,
        "worst_similarity": 0.8,
        "inverse_consistency_mm": 6.0,
        "spread_mm": 6.0,
        "strain": 0.6,
    }
    bad, good = (Evidence(**{**GOOD, **change}).measures() for change in (worse, {}))
    assert model.expected_error_mm(bad) > model.expected_error_mm(good)
    assert model.review_mm <= model.reject_mm


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
