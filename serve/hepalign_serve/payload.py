"""Request bodies: counted, timed and digested while they stream to a file; nothing is parsed here."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from hepalign_serve.problems import RequestError
from hepalign_serve.settings import Limits
from hepalign_serve.shelf import storing

_DIGEST = re.compile(r"\s*(sha-256|sha-512)=:([A-Za-z0-9+/=]+):\s*")
_HASHES = {"sha-256": "sha256", "sha-512": "sha512"}


@dataclass(frozen=True)
class Received:
    """A body on disk."""

    path: Path
    sha256: str
    size: int


def declared_length(request: Request, cap: int) -> int:
    """The Content-Length.

    Raises:
        RequestError: 411 `length_required` without one, 413 `too_large` above the cap.
    """
    text = request.headers.get("content-length")
    if text is None or not text.isdigit():
        raise RequestError("say Content-Length: chunked bodies are not taken", code="length_required", status=411)
    if int(text) > cap:
        raise RequestError(f"the body may have {cap} bytes at most", code="too_large", status=413)
    return int(text)


async def receive(request: Request, folder: Path, limits: Limits) -> Received:
    """Streams the body into a new file of `folder`; on any error nothing is left behind.

    Raises:
        RequestError: 400, 408, 411, 413, 422 or 507, see the codes below.
    """
    length = declared_length(request, limits.upload_bytes)
    expected = _expected_digests(request)
    path = folder / f"{secrets.token_hex(12)}.partial"
    hashes = {name: hashlib.new(_HASHES[name]) for name in {"sha-256", *expected}}
    size = 0
    try:
        with storing(), path.open("wb") as file:
            async for chunk in _timed(request.stream(), limits.stall_s):
                size += len(chunk)
                if size > length:
                    raise RequestError("the body is longer than its Content-Length", code="length_mismatch", status=400)
                for digest in hashes.values():
                    digest.update(chunk)
                file.write(chunk)
        if size != length:
            raise RequestError("the body ended before its Content-Length", code="length_mismatch", status=400)
        for name, value in expected.items():
            if hashes[name].digest() != value:
                raise RequestError(
                    f"the body does not have the {name} that was sent", code="digest_mismatch", status=422
                )
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, ClientDisconnect):
            raise RequestError("the sender hung up", code="disconnected", status=400) from error
        raise
    return Received(path, hashes["sha-256"].hexdigest(), size)


async def _timed(stream: AsyncIterator[bytes], stall_s: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(stall_s):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise RequestError(f"nothing came for {stall_s:g} s", code="stalled", status=408) from error
        if chunk is None:
            return
        yield chunk


def _expected_digests(request: Request) -> dict[str, bytes]:
    header = request.headers.get("content-digest")
    if header is None:
        return {}
    known: dict[str, bytes] = {}
    for part in header.split(","):
        match = _DIGEST.fullmatch(part)
        if match is None:
            continue
        try:
            known[match[1]] = base64.b64decode(match[2], validate=True)
        except binascii.Error as error:
            raise RequestError("Content-Digest is not base64", code="bad_digest", status=400) from error
    if not known:
        raise RequestError("Content-Digest needs sha-256=:…: or sha-512=:…:", code="bad_digest", status=400)
    return known
