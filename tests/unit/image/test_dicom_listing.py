"""Several series in one export are listed, and one of them is chosen by its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import SLICES, one, series, stored, zipped

from hepalign.errors import EXIT_BAD_DATA, BadInputError, UsageError
from hepalign.image.dicom import load_series
from hepalign.image.dicom_listing import list_series
from hepalign.image.read import read_volume


def venous() -> list[object]:
    """A second series of the same patient: four slices, other voxels."""
    changes = {"SeriesInstanceUID": "1.2.50", "SeriesNumber": 7, "SeriesDescription": "Doe Jane venous"}
    slices = [one(k, **changes) for k in range(4)]  # type: ignore[arg-type]
    for k, image in enumerate(slices):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.33.{k}"
        image.PixelData = (stored()[k] + 7).tobytes()
    return list(slices)


def test_the_list_is_in_the_scanner_s_order_and_tells_nothing_of_the_patient(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for n, image in enumerate([*series(SeriesNumber=12), *venous()]):
        image.save_as(folder / f"{n}", enforce_file_format=True)  # type: ignore[attr-defined]
    found = list_series(folder)
    assert [str(one) for one in found] == ["1: CT, 4 images of 6 × 8", f"2: CT, {SLICES} images of 6 × 8"]
    with pytest.raises(BadInputError, match="2 series in it, 1: CT, 4 images") as caught:
        load_series(folder, name="pct")
    assert caught.value.code == "mixed_series"
    assert caught.value.exit_code == EXIT_BAD_DATA
    assert "Doe" not in caught.value.message
    assert "1.2." not in caught.value.message


def test_one_of_them_is_read_by_its_number_from_a_folder_and_a_zip(tmp_path: Path) -> None:
    objects = [*venous(), *series(SeriesNumber=12)]
    packed = zipped(tmp_path / "export.zip", objects)  # type: ignore[arg-type]
    alone = load_series(zipped(tmp_path / "alone.zip", venous()))  # type: ignore[arg-type]
    chosen = load_series(packed, series=1)
    np.testing.assert_array_equal(chosen.volume.data, alone.volume.data)
    assert chosen.identity.series == "1.2.50"
    assert read_volume(packed, series=2).data.shape[2] == SLICES
    for number in (0, 3):
        with pytest.raises(UsageError, match="it holds 1: CT, 4 images") as caught:
            load_series(packed, series=number)
        assert caught.value.code == "no_such_series"


def test_series_of_two_patients_are_refused_as_such(tmp_path: Path) -> None:
    strangers = venous()
    for image in strangers:
        image.PatientID = "P-0815"  # type: ignore[attr-defined]
    packed = zipped(tmp_path / "export.zip", [*series(), *strangers])  # type: ignore[list-item]
    with pytest.raises(BadInputError, match="2 patients") as caught:
        load_series(packed)
    assert caught.value.code == "mixed_patients"
    assert load_series(packed, series=2).identity.patient in ("P-0815", "P-4711")


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_modality_that_is_no_code_word_is_not_shown(tmp_path: Path) -> None:
    odd = venous()
    for image in odd:
        image.Modality = "Doe Jane"  # type: ignore[attr-defined]
    packed = zipped(tmp_path / "export.zip", [*series(), *odd])  # type: ignore[list-item]
    with pytest.raises(BadInputError, match=r"\?, 4 images") as caught:
        load_series(packed)
    assert "Doe" not in caught.value.message
