"""Objects in S3: what boto3 leaves to its callers, resumption and errors that say what to mend.

Endpoint, region and credentials come by the usual variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, profiles …).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions
import stamina
import urllib3.exceptions
from botocore.config import Config

from hepalign.errors import BadInputError, UsageError, WorkFailedError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectIdentifierTypeDef

SCHEME = "s3://"
# S3's smallest part is 5 MiB; at 16 MiB ten thousand parts hold 160 GB.
PART_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
# S3's own bound.
_ERASE_AT_ONCE = 1000
_DIGEST_KEY = "sha256"
# botocore waits up to 1, 2, 4, 8 s between them.
REQUEST_ATTEMPTS = 5
_STREAM_ATTEMPTS = 6
# A condition that no longer holds, and two conditional writes at once.
_OVERTAKEN = (412, 409)

# A body that breaks off: botocore retries requests, never a body that is being read.
_BROKEN_STREAM = (
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ConnectionClosedError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.ReadTimeoutError,
    ConnectionError,
)


@dataclass(frozen=True)
class S3Url:
    """A bucket and the prefix below which a cohort's keys lie (no slash at its end)."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> S3Url:
        """From `s3://bucket/prefix`.

        Raises:
            UsageError: `bad_url`.
        """
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if not url.startswith(SCHEME) or not bucket:
            raise UsageError("an S3 place is written s3://bucket/prefix", code="bad_url")
        return cls(bucket, prefix.strip("/"))

    def key(self, path: str) -> str:
        """The full key of a path below the prefix."""
        return f"{self.prefix}/{path}" if self.prefix else path


@cache
def client() -> S3Client:
    """One client for the process (boto3's clients may be shared by threads)."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=16,
    )
    # a session of its own: boto3's default one keeps the first credentials it ever saw
    return boto3.Session().client("s3", config=config)


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turns boto3's errors into ours; `name` stands for the object.

    Raises:
        BadInputError: `missing_file`.
        UsageError: `no_credentials`, `store_denied`.
        WorkFailedError: `store_unavailable` (503) for everything that may pass.
    """
    try:
        yield
    except botocore.exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 404:
            no_bucket = error.response.get("Error", {}).get("Code") == "NoSuchBucket"
            what = "there is no such bucket; make it or check its name" if no_bucket else "check the place"
            raise BadInputError(f"{name}: not found in the object store; {what}", code="missing_file") from error
        if status in (401, 403):
            message = f"{name}: the object store refuses these credentials; check them and the bucket's policy"
            raise UsageError(message, code="store_denied", status=403) from error
        raise _unavailable(name) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        message = f"{name}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise UsageError(message, code="no_credentials") from error
    except (botocore.exceptions.BotoCoreError, *_BROKEN_STREAM) as error:
        raise _unavailable(name) from error


def _unavailable(name: str) -> WorkFailedError:
    return WorkFailedError(f"{name}: the object store does not answer; try again", code="store_unavailable", status=503)


def read_object(bucket: str, key: str) -> bytes:
    """A small object's bytes; errors as `named_errors`."""
    return read_tagged(bucket, key)[0]


def read_tagged(bucket: str, key: str) -> tuple[bytes, str]:
    """A small object's bytes and its ETag, for `replace_object`; errors as `named_errors`."""
    with named_errors(_base(key)):
        for attempt in stamina.retry_context(on=_BROKEN_STREAM, attempts=_STREAM_ATTEMPTS, wait_initial=0.05):
            with attempt:
                found = client().get_object(Bucket=bucket, Key=key)
                data = found["Body"].read()
    return data, found["ETag"]


def replace_object(bucket: str, key: str, data: bytes, tag: str | None) -> bool:
    """Write a small object if it is still the one that was read; errors as `named_errors`.

    Args:
        bucket: where it lies.
        key: its name.
        data: its new bytes.
        tag: its ETag when it was read; None where there was none.

    Returns:
        False, and nothing is written, where another writer was faster.
    """
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    put = partial(client().put_object, Bucket=bucket, Key=key, Body=data, ChecksumSHA256=checksum)
    with named_errors(_base(key)):
        try:
            put(IfNoneMatch="*") if tag is None else put(IfMatch=tag)
        except botocore.exceptions.ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _OVERTAKEN:
                return False
            raise
    return True


def list_keys(bucket: str, prefix: str) -> list[str]:
    """Every key that starts with `prefix`; errors as `named_errors`."""
    with named_errors(_base(prefix)):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


def erase(bucket: str, keys: Sequence[str]) -> None:
    """Remove objects; one that is not there is no error. Errors as `named_errors`."""
    with named_errors("the case"):
        for start in range(0, len(keys), _ERASE_AT_ONCE):
            names: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + _ERASE_AT_ONCE]]
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True})
            if answer.get("Errors"):
                raise _unavailable("the case")


def check(bucket: str) -> None:
    """Ask whether the bucket answers; errors as `named_errors`."""
    with named_errors(bucket):
        client().head_bucket(Bucket=bucket)


def download(bucket: str, key: str, partial: Path) -> None:
    """Fetch an object into a file, going on where the file ends; the caller checks the digest.

    A broken connection is taken up again at the byte where it broke. Errors as `named_errors`.
    """
    with named_errors(_base(key)):
        for attempt in stamina.retry_context(on=_BROKEN_STREAM, attempts=_STREAM_ATTEMPTS, wait_initial=0.05):
            with attempt:
                _append(bucket, key, partial)


def _append(bucket: str, key: str, partial: Path) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    size = client().head_object(Bucket=bucket, Key=key)["ContentLength"]
    if start >= size:
        # complete, or left over from a longer object: a wrong digest makes the caller start afresh
        return
    body = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-")["Body"]
    with partial.open("ab") as file:
        while chunk := body.read(_CHUNK_BYTES):
            file.write(chunk)


def upload(path: Path, bucket: str, key: str, sha256: str) -> None:
    """Send a file, unless the object is already there; a broken multipart upload goes on with the parts missing.

    The SHA-256 is kept as the object's metadata; every part is checksummed on its way. Errors as `named_errors`.
    """
    with named_errors(_base(key)):
        size = path.stat().st_size
        if _is_there(bucket, key, size, sha256):
            return
        if size > PART_BYTES:
            _upload_parts(path, bucket, key, sha256)
            return
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        client().put_object(
            Bucket=bucket, Key=key, Body=path.read_bytes(), ChecksumSHA256=checksum, Metadata={_DIGEST_KEY: sha256}
        )


def _is_there(bucket: str, key: str, size: int, sha256: str) -> bool:
    try:
        head = client().head_object(Bucket=bucket, Key=key)
    except botocore.exceptions.ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return False
        raise
    return head["ContentLength"] == size and head["Metadata"].get(_DIGEST_KEY) == sha256


def _upload_parts(path: Path, bucket: str, key: str, sha256: str) -> None:
    upload_id, sent = _begun_upload(path, bucket, key)
    if upload_id is None:
        created = client().create_multipart_upload(Bucket=bucket, Key=key, Metadata={_DIGEST_KEY: sha256})
        upload_id = created["UploadId"]
    parts: list[CompletedPartTypeDef] = []
    for number, data in _parts(path):
        etag = sent.get(number)
        if etag is None:
            answer = client().upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data)
            etag = answer["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    client().complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts})


def _begun_upload(path: Path, bucket: str, key: str) -> tuple[str | None, dict[int, str]]:
    """An unfinished upload of this very file, and its parts; one of another content is aborted."""
    listed = client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    for begun in (item for item in listed if item["Key"] == key):
        upload_id = begun["UploadId"]
        pages = client().get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
        sent = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
        # an ETag is the part's MD5, here only to recognise our own bytes
        own = {n: hashlib.md5(data, usedforsecurity=False).hexdigest() for n, data in _parts(path) if n in sent}
        if sent and own == {number: etag.strip('"') for number, etag in sent.items()}:
            return upload_id, sent
        client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    return None, {}


def _parts(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 1
        while data := file.read(PART_BYTES):
            yield number, data
            number += 1


def _base(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]
