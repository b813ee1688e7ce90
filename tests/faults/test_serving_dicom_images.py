"""DICOM archives that cannot be used as they are, over HTTP against the running server: FAULTS 23 to 34."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import numpy as np
import pydicom
import pytest
from dicom_series import SLICES, as_bytes, one, series, stored
from pydicom.dataset import Dataset
from served import Served, problem
from toy_dicom import write_dicom

from hepalign.image.read import read_volume

ZIP = {"Content-Type": "application/zip"}


@pytest.fixture(scope="module")
def case(served: Served) -> str:
    with served.client() as client:
        return client.open_case()


@pytest.fixture
def nothing_left(served: Served, case: str) -> Iterator[None]:
    yield
    assert not [path for path in (served.data_folder / "cases" / case).rglob("*") if path.is_file()]
    assert not list((served.data_folder / "incoming").iterdir())


def packed(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def send(served: Served, case: str, content: bytes, query: str = "") -> httpx2.Response:
    return served.call("PUT", f"/v1/cases/{case}/images/pct{query}", content=content, headers=ZIP)


def send_series(served: Served, case: str, datasets: Sequence[Dataset]) -> httpx2.Response:
    return send(served, case, packed({f"{n}.dcm": as_bytes(dataset) for n, dataset in enumerate(datasets)}))


@pytest.fixture(scope="module")
def abdomen(served: Served, tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.FileDataset]:
    """The phantom's CT as DICOM objects that are accepted."""
    folder = write_dicom(read_volume(served.images["pct"]), tmp_path_factory.mktemp("ct") / "series")
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_fault_23_a_missing_slice_is_named(served: Served, case: str, nothing_left: None) -> None:
    kept = [dataset for k, dataset in enumerate(series()) if k != 2]
    told = problem(send_series(served, case, kept), 422, "missing_slice")
    assert "between slices 2 and 3" in told["detail"]


def test_fault_25_mixed_images(served: Served, case: str, nothing_left: None) -> None:
    for change, code in (
        ({"PatientID": "P-0815"}, "mixed_patients"),
        ({"SeriesInstanceUID": "1.2.99"}, "mixed_series"),
        ({"FrameOfReferenceUID": "1.2.99"}, "mixed_frames"),
    ):
        answer = send_series(served, case, [*series()[:-1], one(SLICES - 1, **change)])  # type: ignore[arg-type]
        problem(answer, 422, code)
        assert not any(word in answer.text for word in ("P-0815", "P-4711", "Doe", "1.2.99"))


def test_fault_26_the_same_object_with_other_bytes(served: Served, case: str, nothing_left: None) -> None:
    other = one(1, PixelData=stored()[3].tobytes())
    problem(send_series(served, case, [*series(), other]), 409, "duplicate_instance")


def test_fault_28_unsupported_transfer_syntaxes(served: Served, case: str, nothing_left: None) -> None:
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(9, wbits=-15)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    deflated = bytes(128) + b"DICM" + meta + body
    problem(send(served, case, packed({"a.dcm": deflated})), 415, "unsupported_transfer_syntax")
    video = as_bytes(one(0)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    problem(send(served, case, packed({"a.dcm": video})), 415, "unsupported_transfer_syntax")


def test_fault_29_deep_sequences(served: Served, case: str, nothing_left: None) -> None:
    inner = b""
    for _ in range(400):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
        inner = b"\x08\x00\x40\x11SQ\0\0" + struct.pack("<L", len(item)) + item
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.2.1\0"
    problem(send(served, case, packed({"a.dcm": bytes(128) + b"DICM" + meta + inner})), 422, "deep_sequences")


def test_fault_30_rows_and_columns_that_lie(served: Served, case: str, nothing_left: None) -> None:
    problem(send_series(served, case, series(Rows=7)), 422, "pixel_size_mismatch")
    problem(send_series(served, case, series(Rows=60000, Columns=60000)), 413, "too_large")


def test_fault_31_nested_zip_and_symlink(served: Served, case: str, nothing_left: None) -> None:
    problem(send(served, case, packed({"a.dcm": packed({"b.dcm": as_bytes(one(0))})})), 400, "unsafe_archive")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    problem(send(served, case, made.getvalue()), 400, "unsafe_archive")


def test_fault_32_forged_sizes_and_a_million_members(served: Served, case: str, nothing_left: None) -> None:
    # one member that claims ten bytes and inflates to gigabytes, made without holding them
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = block * 512 + packer.flush()
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(data), 10, 5, 0) + b"a.dcm"
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(data), 10, 5, 0, 0, 0, 0, 0, 0
    )  # fmt: skip
    central = entry + b"a.dcm"
    start = len(local) + len(data)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(central), start, 0)
    answer = send(served, case, local + data + central + end)
    assert answer.status_code in (413, 422), answer.text
    problem(answer, 413, "too_large")
    directory = (b"PK\x01\x02" + bytes(42)) * 100_000
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, len(directory), 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + len(directory), 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    problem(send(served, case, b"PK\x03\x04" + directory + end64 + locator + last), 413, "too_large")


def test_fault_34_burned_in_annotation(served: Served, case: str, nothing_left: None) -> None:
    problem(send_series(served, case, series(BurnedInAnnotation="YES")), 422, "burned_in_annotation")


def test_fault_24_localizer_in_the_series(
    served: Served, case: str, abdomen: list[pydicom.FileDataset], nothing_left: None
) -> None:
    scout = one(7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(scout, keyword, getattr(abdomen[0], keyword))
    content = packed({f"{n}.dcm": as_bytes(dataset) for n, dataset in enumerate([*abdomen, scout])})
    problem(send(served, case, content), 422, "localizer")
    with served.client() as client:
        other = client.open_case()
    accepted = send(served, other, content, "?drop_localizers=true")
    assert accepted.status_code == 201, accepted.text
    assert any("localizer" in warning for warning in accepted.json()["warnings"])


def test_fault_27_gantry_tilt(
    served: Served, case: str, abdomen: list[pydicom.FileDataset], nothing_left: None
) -> None:
    members = {}
    for k, dataset in enumerate(abdomen):
        tilted = pydicom.dcmread(io.BytesIO(as_bytes(dataset)))
        down = 0.25 * k * float(dataset.SliceThickness) * np.asarray(dataset.ImageOrientationPatient[3:], float)
        tilted.ImagePositionPatient = (np.asarray(dataset.ImagePositionPatient, float) + down).tolist()
        members[f"{k}.dcm"] = as_bytes(tilted)
    problem(send(served, case, packed(members)), 422, "gantry_tilt")
    with served.client() as client:
        other = client.open_case()
    accepted = send(served, other, packed(members), "?resample_tilt=true")
    assert accepted.status_code == 201, accepted.text


def test_fault_26_duplicates_are_used_once(served: Served, abdomen: list[pydicom.FileDataset]) -> None:
    with served.client() as client:
        other = client.open_case()
    answer = send_series(served, other, [*abdomen, abdomen[1]])
    assert answer.status_code == 201, answer.text
    assert answer.json()["shape"][2] == len(abdomen)
    assert any("twice" in warning for warning in answer.json()["warnings"])


def test_fault_33_patient_data_in_a_refusal(served: Served, case: str, nothing_left: None) -> None:
    broken = as_bytes(one(1, PatientBirthDate="Doe^Jane P-4711"))[:-5]
    answer = send(served, case, packed({"Doe^Jane.dcm": as_bytes(one(0)), "Doe^Jane 2.dcm": broken}))
    assert answer.status_code == 422
    written = "".join(path.read_text(encoding="utf-8") for path in (served.data_folder / "logs").iterdir())
    for word in ("Doe", "P-4711"):
        assert word not in answer.text
        assert word not in written


def test_the_folder_of_a_series_is_read_by_its_headers(served: Served, abdomen: list[pydicom.FileDataset]) -> None:
    """Names and nesting say nothing."""
    with served.client() as client:
        other = client.open_case()
    members = {f"DICOM/{(k * 7) % 5}/IM{k * 13 % 101:04d}": as_bytes(d) for k, d in enumerate(abdomen)}
    answer = send(served, other, packed(members))
    assert answer.status_code == 201, answer.text
    assert Path(served.data_folder / "cases" / other / "images").is_dir()
