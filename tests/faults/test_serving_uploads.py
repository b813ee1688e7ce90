"""Faults in what is sent, over HTTP against the running server."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import socket
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from served import Served, nifti_bytes, problem, small_ct

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume


@pytest.fixture(scope="module")
def case(served: Served) -> str:
    with served.client() as client:
        return client.open_case()


@pytest.fixture
def nothing_left(served: Served, case: str):
    def files() -> list[Path]:
        return sorted(path for path in (served.data_folder / "cases" / case).rglob("*") if path.is_file())

    before = files()
    yield
    assert files() == before
    assert not list((served.data_folder / "incoming").iterdir())


def header(**fields: object) -> bytes:
    """A 348-byte NIfTI-1 header of an 8 x 8 x 8 int16 volume, with some fields overwritten."""
    import nibabel as nib

    made = nib.Nifti1Header()
    made.set_data_shape((8, 8, 8))
    made.set_data_dtype(np.int16)
    made.set_sform(np.diag([3.0, 3, 3, 1]), 1)
    made.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    made["magic"] = b"n+1"
    made["vox_offset"] = 352
    for name, value in fields.items():
        made[name] = value
    return made.binaryblock + b"\0" * 4


def test_fault_01_gzip_bomb(served: Served, case: str, nothing_left: None) -> None:
    bomb = gzip.compress(header(dim=[3, 4000, 4000, 500, 1, 1, 1, 1]) + b"\0" * (64 << 20))
    began = time.monotonic()
    problem(served.put(case, "pct", bomb), 413, "too_large")
    assert time.monotonic() - began < 20


def test_fault_02_honest_mask(served: Served, case: str, tmp_path: Path) -> None:
    mask = np.zeros((160, 160, 120), np.uint8)
    mask[80, 80, 60] = 1
    content = nifti_bytes(Volume(mask, Geometry.from_spacing(mask.shape, 2.0)), tmp_path)
    assert mask.nbytes / len(content) > 100
    assert served.put(case, "pct-liver", content).status_code == 201


def test_fault_04_truncated_gzip(served: Served, case: str, tmp_path: Path, nothing_left: None) -> None:
    content = small_ct(tmp_path)
    problem(served.put(case, "ict", content[:-200]), 422, "truncated")


def test_fault_05_truncated_nii(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "ict", header() + b"\0" * 100), 422, "truncated")


def test_fault_09_affine_not_finite(served: Served, case: str, nothing_left: None) -> None:
    content = header(srow_x=[np.nan, 0, 0, 0]) + b"\0" * 1024
    assert served.put(case, "ict", content).status_code == 422


def test_fault_17_png_named_nifti(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "ict", b"\x89PNG\r\n\x1a\n" + b"\0" * 100), 415, "unsupported_media")
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("scan.nii", b"\0" * 400)
    problem(served.put(case, "ict", inside.getvalue()), 415, "unsupported_media")


def test_fault_18_empty_file(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "ict", b""), 422, "empty_file")


def test_fault_20_mr_sent_as_ct(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "pct", served.images["pmr"].read_bytes()), 422, "modality_mismatch")


def test_fault_22_constant_volume(served: Served, case: str, tmp_path: Path, nothing_left: None) -> None:
    flat = Volume(np.full((16, 16, 16), 40, np.int16), Geometry.from_spacing((16, 16, 16), 6.0))
    problem(served.put(case, "ict", nifti_bytes(flat, tmp_path)), 422, "constant_volume")


def test_fault_31_zip_slip(served: Served, case: str, nothing_left: None) -> None:
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("../../escaped.dcm", b"\0" * 128 + b"DICM")
    answer = served.put(case, "ict", inside.getvalue(), **{"Content-Type": "application/zip"})
    assert answer.status_code == 400
    assert not list(served.data_folder.parent.rglob("escaped.dcm"))


def test_fault_39_polygon_is_no_json(served: Served, case: str, nothing_left: None) -> None:
    problem(served.put(case, "ict-probe-mask", b'{"kind": "polygon", '), 422, "bad_probe_mask")


def test_fault_54_no_length_and_too_big(served: Served, case: str, nothing_left: None) -> None:
    unsized = served.call("PUT", f"/v1/cases/{case}/images/ict", content=iter([b"abc"]))
    problem(unsized, 411, "length_required")
    problem(served.put(case, "ict", b"\0" * (8 * 2**20 + 1)), 413, "too_large")
    huge = json.dumps({"engine": "x" * 2**20}).encode()
    problem(served.call("POST", f"/v1/cases/{case}/plan", content=huge), 413, "too_large")


def raw_put(served: Served, case: str, length: int, sent: bytes) -> socket.socket:
    """Begins an upload by hand and leaves it open."""
    address = urlsplit(served.url)
    line = socket.create_connection((address.hostname, address.port), timeout=30)
    head = f"PUT /v1/cases/{case}/images/ict HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {served.token}\r\n"
    line.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
    return line


def test_fault_55_stalled_upload(served: Served, case: str, nothing_left: None) -> None:
    with raw_put(served, case, 1000, b"abc") as line:
        answer = line.recv(4096)
        while b"}" not in answer:
            answer += line.recv(4096)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b'"stalled"' in answer


def test_fault_56_digest_mismatch(served: Served, case: str, tmp_path: Path, nothing_left: None) -> None:
    content = small_ct(tmp_path)
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    problem(served.put(case, "ict", content, **{"Content-Digest": f"sha-256=:{wrong}:"}), 422, "digest_mismatch")
    problem(served.put(case, "ict", content, **{"Content-Digest": "md5=:abc:"}), 400, "bad_digest")


def test_fault_57_many_headers_and_parts(served: Served, case: str) -> None:
    problem(served.call("GET", "/v1/cases", headers={f"x-{i}": "1" for i in range(150)}), 400, "too_many_headers")
    many = served.call("GET", "/v1/cases", headers={f"x-{i}": "1" for i in range(10_000)})
    assert many.status_code in (400, 431)
    problem(served.call("PUT", f"/v1/cases/{case}/uploads/ict/10000", content=b"abc"), 400, "bad_part")


def test_fault_60_sender_hangs_up(served: Served, case: str) -> None:
    line = raw_put(served, case, 1000, b"abc")
    time.sleep(0.3)
    line.close()
    time.sleep(2.0)
    assert not list((served.data_folder / "incoming").iterdir())


def test_chunks_make_the_whole(served: Served, case: str, tmp_path: Path) -> None:
    content = small_ct(tmp_path, seed=4)
    base, cut = f"/v1/cases/{case}/uploads/ict", len(content) // 2
    complete = {"parts": 2, "sha256": hashlib.sha256(content).hexdigest()}
    assert served.call("PUT", f"{base}/1", content=content[cut:]).status_code == 201
    problem(served.call("POST", f"{base}/complete", json=complete), 409, "parts_missing")
    assert served.call("PUT", f"{base}/0", content=content[:cut]).json()["parts"] == {"0": cut, "1": len(content) - cut}
    problem(served.call("POST", f"{base}/complete", json=complete | {"sha256": "0" * 64}), 422, "digest_mismatch")
    stored = served.call("POST", f"{base}/complete", json=complete)
    assert stored.status_code == 201, stored.text
    assert stored.json()["shape"] == [24, 24, 16]
    assert served.call("GET", base).json()["parts"] == {}
