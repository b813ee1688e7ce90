"""The phantom's promises: same seed same bits, exact truth, no folds, warps that no rigid map explains."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.cases.phantom import PhantomCase, PhantomConfig, make_case
from hepalign.cases.phantom.anatomy import draw_anatomy
from hepalign.cases.phantom.make import Streams, draw_motions
from hepalign.cases.phantom.motion import rigid_residual_mm
from hepalign.cases.phantom.needles import grid_points
from hepalign.cases.phantom.randomise import random_ct_look, random_mr_look
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.transform.displacement import transform_points
from hepalign.transform.jacobian import fold_mask

SHAPE = (40, 40, 30)
PAIRS = (("ict", "pct"), ("pct", "pmr"), ("ict", "pmr"))


@pytest.fixture(scope="module")
def cases() -> dict[int, PhantomCase]:
    return {seed: make_case(seed, SHAPE) for seed in (0, 1)}


def _truth(case: PhantomCase, fixed: str, moving: str) -> NDArray[np.float32]:
    return case.fields[f"truth_field_{fixed}_from_{moving}"].vectors


def test_the_same_seed_gives_the_same_bits(cases: dict[int, PhantomCase]) -> None:
    again = make_case(0, SHAPE)
    assert again.attributes == cases[0].attributes
    assert again.volumes.keys() == cases[0].volumes.keys()
    for name, volume in again.volumes.items():
        np.testing.assert_array_equal(volume.data, cases[0].volumes[name].data, err_msg=name)
    for name, field in again.fields.items():
        np.testing.assert_array_equal(field.vectors, cases[0].fields[name].vectors, err_msg=name)


def test_another_seed_gives_another_person(cases: dict[int, PhantomCase]) -> None:
    assert (cases[0].volumes["pct_liver"].data != cases[1].volumes["pct_liver"].data).sum() > 200


@pytest.mark.slow
def test_a_full_triplet_takes_at_most_ten_seconds_of_one_core() -> None:
    make_case(0, (128, 128, 96))
    before = time.process_time()
    make_case(1, (128, 128, 96))
    assert time.process_time() - before < 10


def test_a_case_has_every_file_of_the_contract(cases: dict[int, PhantomCase]) -> None:
    wanted = {f"{role}{part}" for role in ("pmr", "pct", "ict") for part in ("", "_liver", "_tumour")}
    wanted |= {"ict_probe_mask", "ict_clean", "pmr_true_ct"}
    for case in cases.values():
        assert wanted <= set(case.volumes)
        assert set(case.fields) == {f"truth_field_{a}_from_{b}" for a, b in PAIRS}
        assert case.volumes["pct"].data.dtype == np.int16
        assert case.volumes["pmr"].data.dtype == np.float32
        assert case.volumes["pct_liver"].data.dtype == np.bool_
        assert (case.volumes["pct_tumour"].data > 0).any()


def test_the_liver_weighs_what_livers_weigh(cases: dict[int, PhantomCase]) -> None:
    for case in cases.values():
        liver = case.volumes["pct_liver"]
        millilitres = liver.as_mask().sum() * liver.geometry.voxel_volume_mm3 / 1000
        assert 1000 < millilitres < 2300


def test_landmarks_close_through_the_truth(cases: dict[int, PhantomCase]) -> None:
    # A landmark lies between voxels, where the field is read trilinearly: at these 9 mm voxels that costs the most.
    gaps = []
    for case in cases.values():
        for fixed, moving in PAIRS:
            field = case.fields[f"truth_field_{fixed}_from_{moving}"]
            assert case.landmarks[fixed].names == case.landmarks[moving].names
            moved = transform_points(field, case.landmarks[fixed].points_mm)
            gaps.append(np.linalg.norm(moved - case.landmarks[moving].points_mm, axis=1))
    assert np.concatenate(gaps).mean() < 0.2
    assert len(np.concatenate(gaps)) > 80


def test_motion_and_its_inverse_close_at_the_landmarks() -> None:
    anatomy = draw_anatomy(Streams(3).get("anatomy"), PhantomConfig())
    motions = draw_motions(Streams(3).get("motion"), anatomy, PhantomConfig())
    points = anatomy.landmark_points.T.astype(np.float32)
    for motion in motions.values():
        back = motion.to_anatomy(motion.from_anatomy(points, iterations=40))
        assert np.abs(back - points).max() < 1e-3
        assert np.abs(motion.to_anatomy(motion.from_anatomy(points)) - points).max() < 0.1


def test_truth_composes(cases: dict[int, PhantomCase]) -> None:
    for case in cases.values():
        inner, outer = case.fields["truth_field_ict_from_pct"], case.fields["truth_field_pct_from_pmr"]
        liver = np.asarray(case.volumes["ict_liver"].data)
        deep = ndimage.binary_erosion(liver, iterations=2)
        points = inner.geometry.grid_mm()[deep]
        through = transform_points(outer, points + inner.vectors[deep])
        straight = points + _truth(case, "ict", "pmr")[deep]
        assert np.linalg.norm(through - straight, axis=1).mean() < 0.3


def test_truth_carries_one_liver_onto_the_other(cases: dict[int, PhantomCase]) -> None:
    for case in cases.values():
        for fixed, moving in PAIRS:
            field = case.fields[f"truth_field_{fixed}_from_{moving}"]
            target = np.asarray(case.volumes[f"{fixed}_liver"].data)
            points = field.geometry.grid_mm() + field.vectors
            index = np.moveaxis(case.volumes[f"{moving}_liver"].geometry.world_to_index(points), -1, 0)
            moved = ndimage.map_coordinates(case.volumes[f"{moving}_liver"].as_float(), index, order=1) > 0.5
            dice = 2 * (moved & target).sum() / (moved.sum() + target.sum())
            assert dice > 0.9


def test_no_rigid_map_explains_the_warp(cases: dict[int, PhantomCase]) -> None:
    for case in cases.values():
        for fixed, moving in (("ict", "pct"), ("pct", "pmr")):
            liver = np.asarray(case.volumes[f"{fixed}_liver"].data)
            points = case.volumes[fixed].geometry.grid_mm()[liver]
            left = rigid_residual_mm(points, points + _truth(case, fixed, moving)[liver])
            assert 4.9 < left < 8.3


def test_nothing_folds_but_the_sliding_wall(cases: dict[int, PhantomCase]) -> None:
    anatomy = draw_anatomy(Streams(0).get("anatomy"), PhantomConfig())
    motions = draw_motions(Streams(0).get("motion"), anatomy, PhantomConfig())
    for fixed, moving in PAIRS:
        field = cases[0].fields[f"truth_field_{fixed}_from_{moving}"]
        points = motions[fixed].to_anatomy(grid_points(field.geometry))
        inside = anatomy.cavity(anatomy.shape_points(points)) < 0
        wall = inside ^ ndimage.binary_erosion(inside)
        near_wall = ndimage.binary_dilation(wall, iterations=2)
        assert not (fold_mask(field) & ~near_wall).any()


def test_breathing_slides_along_the_wall() -> None:
    config = PhantomConfig(breathing_mm=(20.0, 20.0), session_rotation_deg=0, session_shift_mm=0, on_side_share=0)
    anatomy = draw_anatomy(Streams(5).get("anatomy"), config)
    motion = draw_motions(Streams(5).get("motion"), anatomy, config)["ict"]
    assert motion.slide is not None
    assert motion.cavity is not None
    nodes = grid_points(Geometry.from_spacing((24, 24, 18), 14.0, origin_mm=(-160, -160, -120)))
    inside = motion.cavity.read(nodes)[0] < -3
    moved = nodes + motion.slide.read(nodes)
    # Whoever starts inside the wall ends inside it, though the dome moves by two centimetres.
    assert (motion.cavity.read(moved)[0][inside] < 1).all()
    assert np.abs(motion.slide.read(nodes)[2][inside]).max() > 10


def test_noise_is_not_shared() -> None:
    still = PhantomConfig(
        breathing_mm=(0, 0), rigid_residual_mm=(0, 0), session_rotation_deg=0, session_shift_mm=0, on_side_share=0
    )
    case = make_case(4, SHAPE, config=still)
    deep = ndimage.binary_erosion(case.volumes["pct_liver"].as_mask(), iterations=1)
    deep &= case.volumes["ict_liver"].as_mask() & ~case.volumes["ict_probe_mask"].as_mask()
    ict_noise = case.volumes["ict"].as_float() - case.volumes["ict_clean"].as_float()
    pct = case.volumes["pct"].as_float()
    pct_noise = pct - ndimage.uniform_filter(pct, 3)
    assert ict_noise[deep].std() > 3
    assert abs(np.corrcoef(ict_noise[deep], pct_noise[deep])[0, 1]) < 3 / np.sqrt(deep.sum())


def test_randomised_cases_keep_the_shapes_and_change_the_look(cases: dict[int, PhantomCase]) -> None:
    plain, random = cases[1], make_case(1, SHAPE, randomised=True)
    np.testing.assert_array_equal(plain.volumes["pct_liver"].data, random.volumes["pct_liver"].data)
    field = "truth_field_ict_from_pct"
    np.testing.assert_array_equal(plain.fields[field].vectors, random.fields[field].vectors)
    liver = plain.volumes["pct_liver"].as_mask()
    assert abs(plain.volumes["pct"].data[liver].mean() - random.volumes["pct"].data[liver].mean()) > 5


def test_random_looks_vary_and_keep_air() -> None:
    rng = np.random.default_rng(0)
    looks = [random_ct_look(rng) for _ in range(20)]
    assert np.std([look.values["liver"] for look in looks]) > 60
    assert {look.values["air"] for look in looks} == {-1000.0}
    assert np.std([random_mr_look(rng).values["liver"] for _ in range(20)]) > 0.15


def test_clinical_grids_are_thick_oblique_and_short_and_ablations_gassy() -> None:
    case = make_case(7, SHAPE, config=PhantomConfig(grids="clinical", ablation_share=1.0))
    pmr, pct, ict = (case.volumes[role].geometry for role in ("pmr", "pct", "ict"))
    assert not np.allclose(np.abs(pmr.direction), np.eye(3), atol=0.01)
    assert ict.extent_mm[2] <= 160 < pct.extent_mm[2]
    assert case.fields["truth_field_ict_from_pmr"].geometry.same_grid(ict)
    moved = transform_points(case.fields["truth_field_ict_from_pmr"], case.landmarks["ict"].points_mm)
    assert np.linalg.norm(moved - case.landmarks["pmr"].points_mm, axis=1).mean() < 0.3
    assert resample(case.volumes["pmr"], pct).geometry.same_grid(pct)
    assert case.attributes["ablation"] is True
    assert (case.volumes["ict_ablation"].as_mask() & (case.volumes["ict_tumour"].data > 0)).any()


def test_patients_on_their_side_are_turned() -> None:
    config = PhantomConfig(on_side_share=1.0, on_side_deg=(30.0, 30.0))
    anatomy = draw_anatomy(Streams(9).get("anatomy"), config)
    motions = draw_motions(Streams(9).get("motion"), anatomy, config)
    axial = motions["ict"].rigid[:2, :2]
    turned_deg = np.rad2deg(np.arctan2(axial[1, 0], axial[0, 0]))
    assert abs(abs(turned_deg) - 30) < 6


def test_ct_numbers_are_those_of_the_tables(cases: dict[int, PhantomCase]) -> None:
    for case in cases.values():
        clean = case.volumes["ict_clean"].data
        liver = ndimage.binary_erosion(case.volumes["ict_liver"].as_mask(), iterations=2)
        liver &= case.volumes["ict_tumour"].data == 0
        assert 5 < np.median(clean[liver]) < 105
        assert clean.min() >= -1024
        assert (clean < -900).mean() > 0.2
        assert (clean > 300).any()
