"""From files as hospitals send them to a cohort; the same files in every form give the same case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_cases import toy_case
from toy_dicom import PATIENT_ID, PATIENT_NAME, write_dicom, write_segmentation, zipped

from hepalign.cases.check import check_cohort
from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.sources.importing import fitting_spacing_mm, import_case
from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import body_mask
from hepalign.image.nifti import write_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

SHAPE = (40, 32, 32)
TOY = toy_case(0)["volumes"]


def nifti(folder: Path, name: str, volume: Volume | None = None) -> Path:
    """A toy volume as a file."""
    path = folder / f"{name}.nii.gz"
    volume = TOY[name] if volume is None else volume
    write_nifti(volume.with_data(volume.data.astype(np.uint8)) if volume.data.dtype == bool else volume, path)
    return path


def read(cohort: Cohort, name: str) -> Volume:
    return cohort.volume(cohort.cases()[0], name)


def test_every_form_of_a_series_gives_the_same_case(tmp_path: Path) -> None:
    folder = write_dicom(TOY["pct"], tmp_path / "series")
    forms = {"folder": folder, "zip": zipped(folder, tmp_path / "z.zip"), "nifti": nifti(tmp_path, "pct")}
    for form, path in forms.items():
        import_case(tmp_path / "c", form, images={"pct": path}, shape=SHAPE, spacing_mm=4)
    cohort = open_cohort(tmp_path / "c")
    images = [cohort.volume(case, "pct") for case in cohort.cases()]
    assert len(images) == 3
    for image in images[1:]:
        assert image.geometry.same_grid(images[0].geometry)
        np.testing.assert_allclose(image.as_float(), images[0].as_float(), atol=1)


def test_images_keep_their_place_in_the_world(tmp_path: Path) -> None:
    labels = {name: nifti(tmp_path, name) for name in ("pct_liver", "pct_tumour", "pmr_liver", "ict_liver")}
    images = {
        role: nifti(tmp_path, role, TOY["ict_clean"] if role == "ict" else None) for role in ("pmr", "pct", "ict")
    }
    imported = import_case(
        tmp_path / "c", "one", images=images, labels=labels, probe_mask=nifti(tmp_path, "ict_probe_mask"), shape=SHAPE
    )
    assert imported.warnings == ()
    cohort = open_cohort(tmp_path / "c")
    for name in ("pct", "pmr", "ict"):
        image = read(cohort, name)
        assert image.data.shape == SHAPE
        assert len(set(np.round(image.geometry.spacing_mm, 4))) == 1
        back = resample(image, TOY["pct"].geometry)
        source = TOY["ict_clean" if name == "ict" else name].as_float()
        inside = image.geometry.contains(TOY["pct"].geometry.grid_mm())
        error = np.abs(back.as_float() - source)[inside]
        assert np.median(error) < 0.02 * np.ptp(source)
    for name in (*labels, "ict_probe_mask"):
        back = resample(read(cohort, name), TOY["pct"].geometry, mode="nearest", fill=0).as_mask()
        # the tumour is three voxels wide
        share = 0.4 if name == "pct_tumour" else 0.85
        assert (back & TOY[name].as_mask()).sum() > share * TOY[name].as_mask().sum()
    assert check_cohort(tmp_path / "c") == []


def test_the_field_of_view_lies_on_the_liver(tmp_path: Path) -> None:
    labels = {"pct_liver": nifti(tmp_path, "pct_liver")}
    images = {"pct": nifti(tmp_path, "pct")}
    import_case(tmp_path / "c", "one", images=images, labels=labels, shape=(40, 40, 16), spacing_mm=4)
    cohort = open_cohort(tmp_path / "c")
    assert read(cohort, "pct_liver").as_mask().sum() == pytest.approx(TOY["pct_liver"].as_mask().sum(), rel=0.02)


def test_thick_oblique_images_come_onto_the_grid(tmp_path: Path) -> None:
    angle = np.deg2rad(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    oblique = Geometry.from_spacing((80, 70, 20), (2, 2, 7), origin_mm=(-70, -50, -60), direction=turn)
    thick = resample(TOY["pct"], oblique, fill=-1000)
    import_case(tmp_path / "c", "one", images={"pct": nifti(tmp_path, "pct", thick)}, shape=SHAPE, spacing_mm=4)
    image = read(open_cohort(tmp_path / "c"), "pct")
    np.testing.assert_allclose(image.geometry.direction, np.eye(3), atol=1e-6)
    found, wanted = body_mask(image), resample(body_mask(TOY["pct"]), image.geometry, mode="nearest", fill=0)
    dice = 2 * (found.as_mask() & wanted.as_mask()).sum() / (found.as_mask().sum() + wanted.as_mask().sum())
    assert dice > 0.9


def test_what_lies_outside_the_scan_is_air(tmp_path: Path) -> None:
    import_case(tmp_path / "c", "one", images={"pct": nifti(tmp_path, "pct")}, shape=(64, 64, 64), spacing_mm=4)
    image = read(open_cohort(tmp_path / "c"), "pct")
    assert image.data[0, 0, 0] == -1024
    case = open_cohort(tmp_path / "c").cases()[0]
    assert case.attributes["scanned_mm"] == {"pct": [[-70, -60, -50], [86, 80, 74]]}


def test_the_default_spacing_fits_the_body() -> None:
    abdomen = np.array([360.0, 260.0, 420.0])
    assert fitting_spacing_mm([abdomen], (256, 256, 128)) == pytest.approx(2.2)
    assert fitting_spacing_mm([abdomen / 3], (256, 256, 128)) == pytest.approx(1.3)
    assert fitting_spacing_mm([abdomen, abdomen / 3], (128, 128, 96)) == pytest.approx(3.0)


def test_a_fine_scan_is_smoothed_before_it_becomes_coarse(tmp_path: Path) -> None:
    fine = resample(TOY["pct"], TOY["pct"].geometry.with_shape((120, 108, 96)))
    noise = np.random.default_rng(0).normal(0, 40, fine.data.shape)
    for name, image in (("clean", fine), ("noisy", fine.with_data(fine.as_float() + noise))):
        place = nifti(tmp_path, "pct", image)
        import_case(tmp_path / "c", name, images={"pct": place}, shape=(24, 20, 20), spacing_mm=4)
    cohort = open_cohort(tmp_path / "c")
    clean, noisy = (cohort.volume(case, "pct").as_float() for case in cohort.cases())
    # a Gaussian of 1.2 voxels leaves a ninth of white noise
    assert np.std((noisy - clean)[clean > -500]) < 8


def test_probe_masks_as_json(tmp_path: Path) -> None:
    box = {"kind": "box", "low_mm": [0, 0, 0], "high_mm": [32, 12, 12]}
    (tmp_path / "m.json").write_text(json.dumps(box), encoding="utf-8")
    import_case(
        tmp_path / "c", "one", images={"ict": nifti(tmp_path, "ict_clean")}, probe_mask=tmp_path / "m.json",
        shape=SHAPE, spacing_mm=4,
    )  # fmt: skip
    mask = read(open_cohort(tmp_path / "c"), "ict_probe_mask")
    assert mask.as_mask().sum() * 64 == pytest.approx(32 * 12 * 12, rel=0.6)


def test_landmarks_come_with_their_image(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("name,x,y,z\nfork,1.5,2,3\nfar,900,0,0\n", encoding="utf-8")
    imported = import_case(
        tmp_path / "c", "one", images={"pct": nifti(tmp_path, "pct")}, landmarks={"pct": tmp_path / "l.csv"},
        shape=SHAPE,
    )  # fmt: skip
    cohort = open_cohort(tmp_path / "c")
    assert cohort.landmarks(cohort.cases()[0], "pct").points_mm[0].tolist() == [1.5, 2, 3]
    assert any("1 of 2 points lie outside" in line for line in imported.warnings)


def test_n4_keeps_the_shading_it_takes_out(tmp_path: Path) -> None:
    images = {"pmr": nifti(tmp_path, "pmr")}
    for name, n4 in (("plain", False), ("n4", True)):
        import_case(tmp_path / name, "one", images=images, shape=SHAPE, spacing_mm=4, n4=n4)
    plain, corrected = open_cohort(tmp_path / "plain"), open_cohort(tmp_path / "n4")
    restored = read(corrected, "pmr").as_float() * read(corrected, "pmr_bias").as_float()
    np.testing.assert_allclose(restored, read(plain, "pmr").as_float(), rtol=0.02, atol=2)
    assert check_cohort(tmp_path / "n4") == []


def test_nothing_of_the_patient_is_written(tmp_path: Path) -> None:
    folder = write_dicom(TOY["pct"], tmp_path / "in" / PATIENT_NAME)
    import_case(tmp_path / "c", "one", images={"pct": folder}, shape=SHAPE)
    import gzip

    for path in (path for path in (tmp_path / "c").rglob("*") if path.is_file()):
        data = path.read_bytes()
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        for secret in (PATIENT_ID, *PATIENT_NAME.split("^"), "19640812", "Charit"):
            assert secret.encode() not in data
            assert secret not in str(path.relative_to(tmp_path / "c"))


def test_a_refused_case_leaves_no_cohort_behind(tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        import_case(tmp_path / "c", "one", images={"pct": nifti(tmp_path, "pmr")}, shape=SHAPE)
    assert not (tmp_path / "c" / "manifest.json").exists()
    assert not list((tmp_path / "c" / "cases").iterdir())


def test_words_that_do_not_fit(tmp_path: Path) -> None:
    pct = {"pct": nifti(tmp_path, "pct")}
    with pytest.raises(UsageError) as error:
        import_case(tmp_path / "c", "one", images={})
    assert error.value.code == "no_images"
    with pytest.raises(UsageError) as error:
        import_case(tmp_path / "c", "one", images=pct, labels={"pmr_liver": tmp_path / "x.nii.gz"})
    assert error.value.code == "no_images"
    with pytest.raises(UsageError) as error:
        import_case(tmp_path / "c", "one", images=pct, probe_mask=tmp_path / "x.json")
    assert error.value.code == "no_images"
    with pytest.raises(UsageError) as error:
        import_case(tmp_path / "c", "one", images=pct, labels={"pct_spleen": tmp_path / "x.nii.gz"})
    assert error.value.code == "unknown_role"
    with pytest.raises(UsageError, match="pct: there is no such file") as error:
        import_case(tmp_path / "c", "one", images={"pct": tmp_path / "Mustermann.nii.gz"})
    assert "Mustermann" not in error.value.message
    import_case(tmp_path / "c", "one", images=pct, shape=SHAPE)
    with pytest.raises(UsageError) as error:
        import_case(tmp_path / "c", "one", images=pct, shape=SHAPE)
    assert error.value.code == "case_exists"


def test_a_thick_label_keeps_its_shape_on_the_cohort_s_grid(tmp_path: Path) -> None:
    thick = Geometry.from_spacing((64, 56, 17), (2.5, 2.5, 8.0), origin_mm=(-72, -62, -54))
    x, y, z = np.moveaxis(thick.grid_mm() - thick.centre_mm, -1, 0)
    liver = Volume(((x / 32) ** 2 + (y / 24) ** 2 + (z / 30) ** 2 < 1).astype(np.uint8), thick)
    image = resample(TOY["pct"], thick, fill=-1000)
    import_case(
        tmp_path / "c",
        "one",
        images={"pct": nifti(tmp_path, "pct", image)},
        labels={"pct_liver": nifti(tmp_path, "pct_liver", liver)},
        shape=(64, 64, 56),
        spacing_mm=2.0,
    )
    read_back = read(open_cohort(tmp_path / "c"), "pct_liver")
    x, y, z = np.moveaxis(read_back.geometry.grid_mm() - thick.centre_mm, -1, 0)
    truth = (x / 32) ** 2 + (y / 24) ** 2 + (z / 30) ** 2 < 1
    drawn = read_back.as_mask()
    assert 2 * (drawn & truth).sum() > 0.965 * (drawn.sum() + truth.sum())


def test_a_dicom_segmentation_is_a_label(tmp_path: Path) -> None:
    series = write_dicom(TOY["pct"], tmp_path / "series")
    seg = write_segmentation(series, TOY["pct_liver"], tmp_path / "seg.dcm", "Liver")
    import_case(tmp_path / "c", "one", images={"pct": series}, labels={"pct_liver": seg}, shape=SHAPE, spacing_mm=4)
    import_case(
        tmp_path / "c",
        "two",
        images={"pct": series},
        patient="one",
        labels={"pct_liver": nifti(tmp_path, "pct_liver")},
        shape=SHAPE,
        spacing_mm=4,
    )
    cohort = open_cohort(tmp_path / "c")
    one, two = (cohort.volume(case, "pct_liver") for case in cohort.cases())
    np.testing.assert_array_equal(one.data, two.data)
    stranger = write_dicom(TOY["pct"], tmp_path / "stranger", patient_id="another")
    with pytest.raises(BadInputError, match="another patient") as caught:
        import_case(tmp_path / "c", "three", images={"pct": stranger}, labels={"pct_liver": seg}, shape=SHAPE)
    assert caught.value.code == "patient_mismatch"
    other_study = write_dicom(TOY["pct"], tmp_path / "again")
    with pytest.raises(BadInputError, match="another frame") as caught:
        import_case(tmp_path / "c", "three", images={"pct": other_study}, labels={"pct_liver": seg}, shape=SHAPE)
    assert caught.value.code == "frame_mismatch"


def test_one_of_several_series_is_imported_by_its_number(tmp_path: Path) -> None:
    export = tmp_path / "export"
    write_dicom(TOY["pct"], export / "a")
    write_dicom(TOY["ict_clean"], export / "b")
    with pytest.raises(BadInputError, match="2 series in it") as caught:
        import_case(tmp_path / "c", "one", images={"pct": export}, shape=SHAPE, spacing_mm=4)
    assert caught.value.code == "mixed_series"
    for number in (1, 2):
        import_case(tmp_path / "c", f"n{number}", images={"pct": export}, series={"pct": number}, shape=SHAPE)
    cohort = open_cohort(tmp_path / "c")
    first, second = (cohort.volume(case, "pct").data for case in cohort.cases())
    assert (first != second).any()
