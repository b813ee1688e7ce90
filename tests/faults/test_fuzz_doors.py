"""Whatever bytes come, a door answers with a volume or with BadInputError, and memory stays bounded."""

from __future__ import annotations

import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_series import COLUMNS, ROWS, SLICES, as_bytes, enhanced, one, series, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nifti_bytes import gz, nifti1, nifti2, voxels
from pydicom.uid import JPEGLSLossless, RLELossless
from segmentations import segmentation

from hepalign.errors import BadInputError
from hepalign.image.dicom import load_series
from hepalign.image.dicom_seg import read_segmentation
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign.transform.files import read_field

BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
# An honest volume of these sizes takes kilobytes; what a lying header may reserve is not touched.
MAX_PEAK_BYTES = 24 << 20

Mutation = tuple[float, bytes]
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6
)


def mutated(content: bytes, changes: list[Mutation], cut: float) -> bytes:
    """Overwrite at relative places (dense in the header), then cut the tail."""
    data = bytearray(content)
    for place, new in changes:
        at = int(place**2 * len(data))
        data[at : at + len(new)] = new
    return bytes(data[: int(cut * len(data))])


def survives(read: Callable[[], object]) -> None:
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except BadInputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES


NIFTIS = [nifti1(), nifti1(voxels("f4"), order=">"), nifti2(), nifti2(voxels("f8"), order=">"), gz(nifti1())]
CUTS = st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5])


@BOUNDED
@given(st.sampled_from(NIFTIS), MUTATIONS, CUTS)
def test_nifti_door(content: bytes, changes: list[Mutation], cut: float) -> None:
    def read() -> None:
        volume = read_nifti(mutated(content, changes, cut))
        assert isinstance(volume, Volume)
        assert np.isfinite(volume.as_float()).all()

    survives(read)


@BOUNDED
@given(st.binary(max_size=600))
def test_nifti_door_with_any_bytes(content: bytes) -> None:
    survives(lambda: read_nifti(content))


@BOUNDED
@given(MUTATIONS, CUTS)
def test_field_door(changes: list[Mutation], cut: float) -> None:
    field = nifti1(np.zeros((3, 3, 3, 1, 3), np.float32), patches={68: ("h", (1007,))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.nii"
        path.write_bytes(mutated(field, changes, cut))
        survives(lambda: read_field(path))


def packed(syntax: str) -> bytes:
    dataset = one(0, PixelRepresentation=0)
    dataset.compress(syntax)
    return as_bytes(dataset)


OTHERS = [as_bytes(dataset) for dataset in series()[1:]]
MULTI_FRAME = as_bytes(enhanced())
DICOMS = [as_bytes(one(0)), MULTI_FRAME, packed(RLELossless), packed(JPEGLSLossless)]


@BOUNDED
@given(st.sampled_from(DICOMS), MUTATIONS, CUTS)
def test_dicom_door(content: bytes, changes: list[Mutation], cut: float) -> None:
    # The preamble means nothing: mutate behind it.
    broken = content[:132] + mutated(content[132:], changes, cut)
    others = [] if content == MULTI_FRAME else OTHERS
    with tempfile.TemporaryDirectory() as folder:
        for number, other in enumerate([broken, *others]):
            (Path(folder) / f"{number}.dcm").write_bytes(other)
        survives(lambda: load_series(folder))


def zip_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return zipped(Path(folder) / "ct.zip", series()).read_bytes()


ZIP = zip_bytes()


@BOUNDED
@given(MUTATIONS, CUTS, st.booleans())
def test_zip_door(changes: list[Mutation], cut: float, at_the_end: bool) -> None:
    # The directory stands at the end: mutate it as densely as the first members.
    content = mutated(ZIP[::-1], changes, 1.0)[::-1] if at_the_end else mutated(ZIP, changes, cut)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ct.zip").write_bytes(b"PK\x03\x04" + content[4:])
        survives(lambda: load_series(Path(folder) / "ct.zip"))
        assert [path.name for path in Path(folder).iterdir()] == ["ct.zip"]


def seg_bytes() -> bytes:
    mask = np.zeros((SLICES, ROWS, COLUMNS), bool)
    mask[1:4, 1:5, 2:7] = True
    return as_bytes(segmentation([mask], ["Liver"]))


SEG = seg_bytes()


@BOUNDED
@given(MUTATIONS, CUTS)
def test_segmentation_door(changes: list[Mutation], cut: float) -> None:
    broken = SEG[:132] + mutated(SEG[132:], changes, cut)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "seg.dcm").write_bytes(broken)
        survives(lambda: read_segmentation(Path(folder) / "seg.dcm", "liver", name="pct_liver"))
