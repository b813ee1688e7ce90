from __future__ import annotations

import struct

import pytest
from dicom_series import as_bytes, enhanced, one
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from hepalign.errors import BadInputError
from hepalign.image.dicom_bytes import check_bytes, is_dicom

EXPLICIT, IMPLICIT = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0"
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
UNDEFINED = b"\xff\xff\xff\xff"


def file_of(body: bytes, syntax: bytes = EXPLICIT) -> bytes:
    return bytes(128) + b"DICM\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax + body


def sequence(content: bytes, vr: bytes = b"SQ\0\0", tag: bytes = b"\x08\x00\x40\x11") -> bytes:
    return tag + vr + struct.pack("<L", len(content)) + content


@pytest.mark.parametrize("make", [lambda: one(0), enhanced])
def test_whole_files_pass(make: object) -> None:
    content = as_bytes(make())  # type: ignore[operator]
    assert is_dicom(content)
    assert check_bytes(content, "pct") == "1.2.840.10008.1.2.1"
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        dataset = make()  # type: ignore[operator]
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset["PixelData"].VR = "OW"
        assert check_bytes(as_bytes(dataset), "pct") == syntax


@pytest.mark.parametrize(
    "body",
    [
        b"",
        sequence(b""),
        sequence(ITEM + bytes(4)),
        sequence(ITEM + UNDEFINED + ITEM_END),
        b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED + ITEM + bytes(4) + SEQUENCE_END,
        # A sequence hidden in UN is implicit inside (PS3.5 6.2.2).
        sequence(ITEM + struct.pack("<L", 10) + b"\x08\x00\x50\x11" + struct.pack("<L", 2) + b"1\0", vr=b"UN\0\0"),
        b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + ITEM + bytes(4) + ITEM + struct.pack("<L", 4) + b"abcd" + SEQUENCE_END,
    ],
)
def test_well_formed_bodies_pass(body: bytes) -> None:
    assert check_bytes(file_of(body), "pct")


def test_an_implicit_sequence_of_defined_length_is_walked() -> None:
    inside = ITEM + struct.pack("<L", 10) + b"\x08\x00\x50\x11" + struct.pack("<L", 2) + b"1\0"
    assert check_bytes(file_of(sequence(inside, vr=b""), IMPLICIT), "pct")
    with pytest.raises(BadInputError) as error:
        check_bytes(file_of(sequence(inside[:-4], vr=b""), IMPLICIT), "pct")
    assert error.value.code in {"bad_dicom", "truncated"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (ITEM + bytes(4), "bad_dicom"),
        (ITEM_END, "bad_dicom"),
        (sequence(b"\x08\x00\x50\x11UI\x02\x001\0"), "bad_dicom"),
        (sequence(ITEM + struct.pack("<L", 100)) + bytes(200), "bad_dicom"),
        (b"\x08\x00\x50\x11ZZ\x02\x001\0", "bad_dicom"),
        (b"\x08\x00\x50\x11UI\xff\x001\0", "truncated"),
        (b"\x08\x00\x50", "truncated"),
        (b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED + ITEM + bytes(4), "truncated"),
    ],
)
def test_elements_that_do_not_fit_are_refused(body: bytes, code: str) -> None:
    with pytest.raises(BadInputError) as error:
        check_bytes(file_of(body), "pct")
    assert error.value.code == code


def test_too_many_elements_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepalign.image.dicom_bytes.MAX_ELEMENTS", 100)
    element = b"\x08\x00\x50\x11UI\x02\x001\0"
    assert check_bytes(file_of(element * 99), "pct")
    with pytest.raises(BadInputError) as error:
        check_bytes(file_of(element * 101), "pct")
    assert (error.value.code, error.value.status) == ("too_large", 413)


def test_a_file_without_transfer_syntax_is_refused() -> None:
    with pytest.raises(BadInputError) as error:
        check_bytes(bytes(128) + b"DICM" + b"\x08\x00\x50\x11UI\x02\x001\0", "pct")
    assert error.value.code == "bad_dicom"
    with pytest.raises(BadInputError) as other:
        check_bytes(b"no preamble", "pct")
    assert other.value.code == "unsupported_media"
