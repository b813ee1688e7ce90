"""The projection-domain artefact: where it is, how strong, and that it leaves the rest alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.cases.phantom.artefact import METALS, SPECTRUM, WATER, Scan, add_artefact
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.insertion import Probe, insert_probe
from hepalign.cases.phantom.needles import EXTENSION_CORE_MM, Needle, coarse_mask, grid_points, metal_share
from hepalign.cases.phantom.shapes import cone
from hepalign.image.geometry import Geometry

SPACING_MM = 3.0


def _cylinder(shape: tuple[int, int, int] = (96, 96, 24)) -> tuple[NDArray[np.float32], Geometry, NDArray[np.bool_]]:
    """A water-like body of 240 mm with an unenhanced liver's HU."""
    half = (np.array(shape) - 1) / 2 * SPACING_MM
    geometry = Geometry.from_spacing(shape, SPACING_MM, origin_mm=-half)
    points = grid_points(geometry)
    body = np.hypot(points[0], points[1]) < 120
    return np.where(body, np.float32(55), np.float32(-1000)), geometry, body


@pytest.fixture(scope="module")
def inserted() -> tuple[Probe, NDArray[np.float32], Geometry, NDArray[np.bool_]]:
    clean, geometry, body = _cylinder()
    config = PhantomConfig(needles=(1, 1))
    target = np.array([30.0, 10.0, 1.0])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        probe = insert_probe(rng, clean, target, lambda p: np.hypot(p[0], p[1]) - 120, body, geometry, config)
        if abs(probe.needles[0].heading[2]) < 0.03 and probe.attributes["metal"] == "steel":
            return probe, clean, geometry, body
    raise AssertionError("no seed gave an in-plane steel needle")


def test_the_spectrum_is_a_spectrum() -> None:
    assert SPECTRUM.sum() == pytest.approx(1)
    mean_mu = float((SPECTRUM * WATER).sum())
    assert 0.19 < mean_mu < 0.23
    for mu in METALS.values():
        assert (np.diff(mu) < 0).all()


def test_no_metal_changes_nothing() -> None:
    clean, _, _ = _cylinder((48, 48, 4))
    rng = np.random.default_rng(0)
    assert not add_artefact(rng, clean, np.zeros_like(clean), SPACING_MM, Scan(views=60)).any()


def test_slices_without_metal_stay_as_they_are() -> None:
    clean, _, _ = _cylinder((64, 64, 6))
    metal = np.zeros_like(clean)
    metal[30:34, 32, 2] = 0.5
    difference = add_artefact(np.random.default_rng(0), clean, metal, SPACING_MM, Scan(views=120))
    assert np.abs(difference[:, :, 2]).max() > 500
    assert not difference[:, :, [0, 1, 3, 4, 5]].any()


def test_little_metal_reads_as_its_attenuation() -> None:
    # A trace of titanium hardly hardens the beam: the reconstruction must hold its share of attenuation.
    clean, geometry, _ = _cylinder((64, 64, 1))
    metal = np.zeros_like(clean)
    metal[30:34, 30:34, 0] = 0.02
    scan = Scan(photons=1e12, views=180, metal="titanium")
    difference = add_artefact(np.random.default_rng(0), clean, metal, SPACING_MM, scan)
    seen = difference[26:38, 26:38, 0].sum()
    # Between the metal's attenuation at 100 keV and at 50 keV, in HU times voxels.
    low, high = (METALS["titanium"][e] / 0.192 * 1000 * metal.sum() for e in (4, 1))
    assert 0.8 * low < seen < 1.1 * high
    assert geometry.spacing_mm[0] == SPACING_MM


def test_the_needle_is_bright_and_its_extension_dark(
    inserted: tuple[Probe, NDArray[np.float32], Geometry, NDArray[np.bool_]],
) -> None:
    probe, clean, geometry, _ = inserted
    needle = probe.needles[0]
    points = grid_points(geometry)
    image = clean + probe.difference
    shaft = cone(points, needle.tip - 10 * needle.heading, needle.tip - 60 * needle.heading, 0, 0) < 1.0
    assert image[shaft].mean() > 800
    ahead = cone(points, needle.tip + 4 * needle.heading, needle.tip + 16 * needle.heading, 0, 0) < EXTENSION_CORE_MM
    assert -175 < probe.difference[ahead].mean() < -60


def test_the_mask_covers_probe_and_visible_artefact(
    inserted: tuple[Probe, NDArray[np.float32], Geometry, NDArray[np.bool_]],
) -> None:
    probe, _, geometry, body = inserted
    metal = metal_share(probe.needles, geometry) > 0.2
    assert probe.mask[metal].mean() > 0.99
    strong = (np.abs(probe.difference) > 150) & body
    assert probe.mask[strong].mean() > 0.85
    assert (probe.mask & body).sum() / body.sum() < 0.2


def test_metal_volume_is_the_needles() -> None:
    geometry = Geometry.from_spacing((40, 40, 40), 2.0)
    needle = Needle(np.array([20.0, 21.0, 22.0]), np.array([60.0, 55.0, 50.0]), 1.0)
    length = float(np.linalg.norm(needle.tail - needle.tip))
    volume = metal_share([needle], geometry).sum() * geometry.voxel_volume_mm3
    assert volume == pytest.approx(np.pi * length + 4 / 3 * np.pi, rel=0.1)


def test_a_mask_without_artefact_is_a_plain_capsule() -> None:
    clean, geometry, body = _cylinder((32, 32, 16))
    needle = Needle(np.zeros(3), np.array([90.0, 0, 0]), 1.0)
    mask = coarse_mask([needle], np.zeros_like(clean), body, geometry)
    points = grid_points(geometry)
    reach = points[:, mask][0].min()
    assert -26 < reach < -15
    assert mask[np.hypot(points[1], points[2]) > 8].sum() == 0


def test_the_same_seed_gives_the_same_artefact() -> None:
    clean, geometry, body = _cylinder((48, 48, 8))
    config = PhantomConfig()

    def make() -> Probe:
        rng = np.random.default_rng(3)
        return insert_probe(rng, clean, np.zeros(3), lambda p: np.hypot(p[0], p[1]) - 120, body, geometry, config)

    np.testing.assert_array_equal(make().difference, make().difference)
