"""DICOM segmentations, written by highdicom from a series, come back on the series' grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import COLUMNS, ROWS, SLICES, as_bytes, series, write
from numpy.typing import NDArray
from segmentations import segmentation

from hepalign.errors import BadInputError
from hepalign.image.dicom import load_series
from hepalign.image.dicom_seg import read_segmentation
from hepalign.image.volume import Volume

RNG = np.random.default_rng(3)
LIVER = np.zeros((SLICES, ROWS, COLUMNS), bool)
LIVER[1:4, 1:5, 2:7] = RNG.random((3, 4, 5)) > 0.2
SPOT = np.zeros_like(LIVER)
SPOT[2, 3, 4] = True
OTHER = np.zeros_like(LIVER)
OTHER[3:5, 0, 1] = True


def saved(path: Path, dataset: pydicom.Dataset) -> Path:
    path.write_bytes(as_bytes(dataset))
    return path


def on_series(mask: NDArray[np.bool_], tmp_path: Path) -> Volume:
    """What a mask (slice, row, column) is on the series' own grid."""
    volume = load_series(write(tmp_path / "series", series())).volume
    return volume.with_data(np.ascontiguousarray(mask.transpose(2, 1, 0)))


def same_places(label: Volume, mask: Volume, value: int = 1) -> None:
    drawn = label.geometry.index_to_world(np.argwhere(label.data == value))
    truth = mask.geometry.index_to_world(np.argwhere(mask.data))
    order = [np.lexsort(np.round(points, 3).T) for points in (drawn, truth)]
    np.testing.assert_allclose(drawn[order[0]], truth[order[1]], atol=1e-2)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("omit_empty", [True, False])
def test_a_mask_comes_back_where_it_was_drawn(tmp_path: Path, kind: str, omit_empty: bool) -> None:
    path = saved(tmp_path / "seg.dcm", segmentation([LIVER], ["whatever"], kind=kind, omit_empty=omit_empty))
    found = read_segmentation(path, "liver", name="pct_liver")
    same_places(found.volume, on_series(LIVER, tmp_path))
    assert found.identity.patient == "P-4711"
    assert found.identity.frame_of_reference == "1.2.6"


def test_segments_are_found_by_their_names_and_tumours_kept_apart(tmp_path: Path) -> None:
    dataset = segmentation([LIVER, SPOT, OTHER], ["Liver", "Liver tumour 1", "hepatic lesion"])
    path = saved(tmp_path / "seg.dcm", dataset)
    same_places(read_segmentation(path, "liver", name="l").volume, on_series(LIVER, tmp_path))
    tumours = read_segmentation(path, "tumour", name="t").volume
    same_places(tumours, on_series(SPOT, tmp_path), 1)
    same_places(tumours, on_series(OTHER, tmp_path), 2)
    with pytest.raises(BadInputError, match="none of its 3 segments") as caught:
        read_segmentation(path, "ablation", name="a")
    assert caught.value.code == "segment_unclear"


def test_the_one_in_a_folder_of_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "export", series())
    with pytest.raises(BadInputError, match="0 DICOM segmentations") as caught:
        read_segmentation(folder, "liver", name="l")
    assert caught.value.code == "no_segmentation"
    saved(folder / "seg", segmentation([LIVER], ["x"]))
    same_places(read_segmentation(folder, "liver", name="l").volume, on_series(LIVER, tmp_path))


def test_frames_that_lie_are_refused_without_a_word_of_the_patient(tmp_path: Path) -> None:
    dataset = segmentation([LIVER], ["Doe^Jane"])
    dataset.PixelData = dataset.PixelData[:4]
    path = saved(tmp_path / "Doe.dcm", dataset)
    with pytest.raises(BadInputError) as caught:
        read_segmentation(path, "liver", name="pct_liver")
    assert caught.value.code == "bad_segmentation"
    assert "Doe" not in caught.value.message


def test_positions_far_apart_are_not_allocated(tmp_path: Path) -> None:
    dataset = segmentation([LIVER], ["x"], omit_empty=False)
    far = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    far.ImagePositionPatient = [float(v) * 1e6 for v in far.ImagePositionPatient]
    with pytest.raises(BadInputError) as caught:
        read_segmentation(saved(tmp_path / "seg.dcm", dataset), "liver", name="l")
    assert caught.value.code in ("bad_segmentation", "too_large", "implausible_grid")
