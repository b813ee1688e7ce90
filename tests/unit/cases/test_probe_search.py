"""Needles are found in what an iCT shows: alone, as a fan, faint ones with a warning, and never in bone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hepalign.cases.phantom import make_case
from hepalign.cases.phantom.needles import Needle, metal_share
from hepalign.cases.probe_search import ARTEFACT_MARGIN_MM, EXTENSION_MM, _around, _Line, find_probe
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

GEOMETRY = Geometry.from_spacing((64, 64, 40), 2.5, origin_mm=(-80, -80, -50))
ENTRY = np.array([78.0, 20.0, 10.0])


def patient() -> np.ndarray:
    """A cylinder of soft tissue in a shell of bone, HU."""
    points = GEOMETRY.grid_mm()
    radius = np.hypot(points[..., 0], points[..., 1])
    hu = np.where(radius < 70, 50.0, -1000.0)
    hu[np.abs(radius - 62) < 3] = 1450.0
    return hu


def with_needles(needles: list[Needle], metal_hu: float) -> tuple[Volume, np.ndarray]:
    metal = metal_share(needles, GEOMETRY)
    return Volume(np.minimum(patient() + metal_hu * metal, 3071).astype(np.float32), GEOMETRY), metal > 0.2


def test_bone_is_no_needle() -> None:
    with pytest.raises(BadInputError) as refused:
        find_probe(Volume(patient().astype(np.float32), GEOMETRY))
    assert refused.value.code == "probe_not_found"


@pytest.mark.parametrize("tips", [[(5, 5, 0)], [(0, 0, 0), (1, 3, 1), (-2, -2, 3)]])
def test_needles_are_found_even_where_they_meet(tips: list[tuple[float, float, float]]) -> None:
    spread = [np.array([0.0, 0.0, 0.0]), np.array([0.0, 14.0, 6.0]), np.array([0.0, -14.0, -4.0])]
    needles = [Needle(np.array(tip, float), ENTRY + away, 1.1) for tip, away in zip(tips, spread, strict=False)]
    ict, metal = with_needles(needles, 9000)
    warnings: list[str] = []
    found = find_probe(ict, warnings).as_mask()
    assert found[metal].mean() > 0.95
    assert found.mean() < 0.2
    assert not warnings


def test_a_faint_needle_is_found_with_a_warning() -> None:
    needle = Needle(np.array([-10.0, 5.0, 0.0]), np.array([42.0, 12.0, 8.0]), 1.1)
    metal = metal_share([needle], GEOMETRY) > 0.15
    hu = np.where(metal, 1600.0, patient())
    warnings: list[str] = []
    found = find_probe(Volume(hu.astype(np.float32), GEOMETRY), warnings).as_mask()
    assert found[metal].mean() > 0.9
    assert found.mean() < 0.2
    assert len(warnings) == 1


def test_the_mask_about_a_needle_is_a_capsule_and_needs_no_whole_grid() -> None:
    turned = Geometry.from_spacing((90, 100, 70), 2.0, direction=np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2 + 1)[0])
    middle = turned.centre_mm
    needle = _Line(middle, middle + np.array([30.0, 9.0, -5.0]), 1.0)
    radius_mm, along = 1.0 + ARTEFACT_MARGIN_MM[0], needle.heading
    tracemalloc.start()
    found = _around([needle], turned)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    points = turned.grid_mm() - needle.start
    length = np.linalg.norm(needle.end - needle.start)
    share = np.clip(points @ along, -EXTENSION_MM, length + EXTENSION_MM)
    gap = np.linalg.norm(points - share[..., None] * along, axis=-1)
    np.testing.assert_array_equal(found, gap < radius_mm)
    assert found.any()
    assert peak < 48 * found.size


@pytest.mark.slow
def test_recall_of_the_coarse_mask_over_ten_phantoms() -> None:
    recalls, metals = [], []
    for seed in range(7000, 7010):
        case = make_case(seed, (112, 112, 80), 3.2)
        truth = case.volumes["ict_probe_mask"].as_mask()
        body = case.volumes["ict_clean"].as_float() > -300
        metal = truth & (case.volumes["ict"].as_float() - case.volumes["ict_clean"].as_float() > 800)
        found = find_probe(case.volumes["ict"]).as_mask()
        recalls.append(found[truth & body].mean())
        metals.append(found[metal].mean())
    assert min(metals) > 0.9
    assert np.mean(recalls) > 0.7
