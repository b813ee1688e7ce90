"""A DICOM file's bytes walked once, without recursion, before pydicom may parse them.

pydicom inflates a deflated data set without a limit and recurses into sequences; both are decided here first. Layout:
DICOM PS3.10 (file meta information) and PS3.5 section 7 (elements, sequences, encapsulated pixels).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from hepalign.errors import BadInputError

PREAMBLE_BYTES = 128
MAX_DEPTH = 24
# An enhanced multi-frame object has about a hundred elements a frame.
MAX_ELEMENTS = 1_000_000
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# Codestreams that pydicom's installed plugins do not decode and GDCM (inside SimpleITK) does.
GDCM_ONLY = (JPEGLossless, JPEGLosslessSV1)
SUPPORTED = (
    *UNCOMPRESSED, *GDCM_ONLY, RLELossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000,
)  # fmt: skip
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT_VRS = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX, _PIXEL_DATA = 0x00020010, 0x7FE00010


def is_dicom(start: bytes) -> bool:
    """Whether a file's first 132 bytes are a DICOM preamble."""
    return start[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM"


def check_bytes(data: bytes, name: str) -> str:
    """Walk every element of a DICOM file.

    Args:
        data: the whole file.
        name: what to call it in messages.

    Returns:
        the transfer syntax UID.

    Raises:
        BadInputError: `unsupported_media` (415) without a preamble, `unsupported_transfer_syntax` (415) before the
            data set is touched, `deep_sequences`, `truncated`, `bad_dicom`, `too_large` (413).
    """
    if not is_dicom(data[: PREAMBLE_BYTES + 4]):
        raise BadInputError(f"{name}: not a DICOM file", code="unsupported_media", status=415)
    try:
        syntax, start = _file_meta(data, name)
        if syntax not in SUPPORTED:
            message = f"{name}: transfer syntax {syntax} is not read; export it uncompressed or as JPEG 2000"
            raise BadInputError(message, code="unsupported_transfer_syntax", status=415)
        _Walk(data, start, syntax, name).run()
    except struct.error as error:
        raise BadInputError(f"{name}: the DICOM file breaks off; send it again", code="truncated") from error
    return syntax


def _file_meta(data: bytes, name: str) -> tuple[str, int]:
    """The transfer syntax, and where the data set begins; group 0002 is always explicit little endian."""
    position, syntax = PREAMBLE_BYTES + 4, ""
    while data[position : position + 2] == b"\x02\x00":
        group, element, vr, length = struct.unpack_from("<HH2sH", data, position)
        position += 8
        if vr in _LONG_VRS:
            (length,) = struct.unpack_from("<L", data, position)
            position += 4
        if position + length > len(data):
            raise BadInputError(f"{name}: the DICOM file breaks off; send it again", code="truncated")
        if (group << 16 | element) == _TRANSFER_SYNTAX:
            raw = data[position : position + length].rstrip(b"\0 ")
            # Shown in messages: a UID and nothing else.
            syntax = raw.decode("ascii") if raw.replace(b".", b"").isdigit() and len(raw) <= 64 else "(no UID)"
        position += length
    if not syntax:
        raise BadInputError(f"{name}: the DICOM file names no transfer syntax; export it again", code="bad_dicom")
    return syntax, position


@dataclass
class _Frame:
    """An open sequence or item: where it ends (None until its delimiter), how its content is encoded."""

    is_item: bool
    end: int | None
    explicit: bool
    opaque: bool = False


class _Walk:
    def __init__(self, data: bytes, start: int, syntax: str, name: str) -> None:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        self._tag, self._short, self._long = (struct.Struct(order + layout) for layout in ("HH", "H", "L"))
        self._data, self._position, self._name = data, start, name
        self._open = [_Frame(True, len(data), syntax != ImplicitVRLittleEndian)]

    def run(self) -> None:
        """Step over every element until the end of the data."""
        for _ in range(MAX_ELEMENTS):
            while self._open[-1].end == self._position:
                self._open.pop()
                if not self._open:
                    return
            self._step()
        raise BadInputError(f"{self._name}: a DICOM file without end", code="too_large", status=413)

    def _step(self) -> None:
        group, element = self._tag.unpack_from(self._data, self._position)
        self._position += 4
        tag = group << 16 | element
        frame = self._open[-1]
        if group == 0xFFFE:
            self._delimiter(tag, frame)
        elif frame.is_item:
            self._element(tag, frame)
        else:
            raise self._bad()

    def _delimiter(self, tag: int, frame: _Frame) -> None:
        length = self._take(self._long)
        if tag == _ITEM and not frame.is_item:
            if frame.opaque:
                self._skip(length)
            else:
                self._push(_Frame(True, self._end(length), frame.explicit))
        elif tag == (_ITEM_END if frame.is_item else _SEQUENCE_END) and frame.end is None:
            self._open.pop()
        else:
            raise self._bad()

    def _element(self, tag: int, frame: _Frame) -> None:
        vr = b"  "
        if frame.explicit:
            vr = self._data[self._position : self._position + 2]
            self._position += 2
            if vr in _LONG_VRS:
                self._position += 2
                length = self._take(self._long)
            elif vr in _SHORT_VRS:
                length = self._take(self._short)
            else:
                raise self._bad()
        else:
            length = self._take(self._long)
        if tag == _PIXEL_DATA and length == _UNDEFINED:
            self._push(_Frame(False, None, frame.explicit, opaque=True))
        elif vr == b"SQ" or length == _UNDEFINED or (vr in (b"  ", b"UN") and _known_sequence(tag)):
            # What is UN is implicit little endian inside (PS3.5 6.2.2).
            self._push(_Frame(False, self._end(length), frame.explicit and vr == b"SQ"))
        else:
            self._skip(length)

    def _take(self, layout: struct.Struct) -> int:
        value = int(layout.unpack_from(self._data, self._position)[0])
        self._position += layout.size
        return value

    def _end(self, length: int) -> int | None:
        if length == _UNDEFINED:
            return None
        self._check_fits(self._position + length)
        return self._position + length

    def _skip(self, length: int) -> None:
        self._check_fits(self._position + length)
        self._position += length

    def _check_fits(self, end: int) -> None:
        if end > len(self._data):
            raise BadInputError(f"{self._name}: the DICOM file breaks off; send it again", code="truncated")
        limit = next((frame.end for frame in reversed(self._open) if frame.end is not None), end)
        if end > limit:
            raise self._bad()

    def _push(self, frame: _Frame) -> None:
        self._open.append(frame)
        if len(self._open) > 2 * MAX_DEPTH:
            message = f"{self._name}: sequences nested deeper than {MAX_DEPTH}; export it again"
            raise BadInputError(message, code="deep_sequences")

    def _bad(self) -> BadInputError:
        return BadInputError(f"{self._name}: a DICOM file whose elements do not fit together", code="bad_dicom")


def _known_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
