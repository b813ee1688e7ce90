"""Sites and their bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Any

import jwt
from sqlalchemy import select

from hepalign.errors import UsageError
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Records, Site, Token
from hepalign_serve.settings import Oidc

# A key is `hepalign_<key id>_<secret>`: the id finds the row, 256 random bits prove it.
_KEY = re.compile(r"hepalign_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_JWT_ALGORITHMS = ["RS256", "ES256"]


def add_site(records: Records, site: str) -> str:
    """Makes a site; returns its first key, which is shown this once.

    Raises:
        UsageError: `bad_site_name` or `site_exists`.
    """
    if not _SITE_NAME.fullmatch(site):
        raise UsageError("a site's name is lower-case letters, digits and dashes", code="bad_site_name")
    with records.write() as session:
        if session.get(Site, site) is not None:
            raise UsageError(f"the site {site} exists: rotate its key instead", code="site_exists")
        session.add(Site(id=site, created=time.time(), revoked=None))
    return _issue(records, site)


def rotate(records: Records, site: str, *, overlap_s: float = 24 * 3600.0) -> str:
    """A new key for the site; the old ones stay valid for `overlap_s` more seconds."""
    now = time.time()
    with records.write() as session:
        _existing(session, site)
        for token in session.scalars(select(Token).where(Token.site_id == site)):
            token.expires = min(token.expires or now + overlap_s, now + overlap_s)
    return _issue(records, site)


def revoke(records: Records, site: str) -> None:
    """Refuses the site from now on, whatever it shows."""
    with records.write() as session:
        _existing(session, site).revoked = time.time()


def list_sites(records: Records) -> list[dict[str, Any]]:
    """Every site with its key ids (never the keys)."""
    with records.read() as session:
        keys: dict[str, list[dict[str, Any]]] = {}
        for token in session.scalars(select(Token).order_by(Token.created)):
            entry = {"key_id": token.key_id, "created": token.created, "expires": token.expires}
            keys.setdefault(token.site_id, []).append(entry)
        rows = session.scalars(select(Site).order_by(Site.id))
        return [
            {"site": row.id, "created": row.created, "revoked": row.revoked, "keys": keys.get(row.id, [])}
            for row in rows
        ]


class Gate:
    """Who is asking? Site keys, and the identity provider's JWTs where one is configured."""

    def __init__(self, records: Records, oidc: Oidc | None = None) -> None:
        self._records = records
        self._oidc = oidc
        self._public_key = oidc.public_key_file.read_bytes() if oidc and oidc.public_key_file else None
        # It keeps the keys it has seen; an unknown key id makes it ask again, twice a minute at most.
        self._published = jwt.PyJWKClient(oidc.jwks_url, timeout=5) if oidc and oidc.jwks_url else None

    def site(self, authorization: str | None) -> str:
        """The site of an Authorization header.

        Raises:
            RequestError: 401 `unauthorised`, the same for every reason.
        """
        scheme, _, token = (authorization or "").partition(" ")
        site = None
        if scheme.lower() == "bearer":
            match = _KEY.fullmatch(token.strip())
            site = self._by_key(*match.groups()) if match else self._by_jwt(token.strip())
        if site is None:
            raise RequestError("show a valid bearer token", code="unauthorised", status=401)
        return site

    def _by_key(self, key_id: str, secret: str) -> str | None:
        with self._records.read() as session:
            token = session.get(Token, key_id)
            known = token.digest if token else "0" * 64
            matches = hmac.compare_digest(known, _digest(secret))
            if token is None or not matches or (token.expires is not None and token.expires <= time.time()):
                return None
            return self._if_active(session.get(Site, token.site_id))

    def _by_jwt(self, token: str) -> str | None:
        if self._oidc is None:
            return None
        try:
            claims = jwt.decode(
                token,
                self._verifying_key(token),
                algorithms=_JWT_ALGORITHMS,
                audience=self._oidc.audience,
                issuer=self._oidc.issuer,
                options={"require": ["exp", "aud", "iss", self._oidc.site_claim]},
            )
        except (jwt.PyJWTError, TypeError, ValueError):
            # Whatever a token is made of, one that does not verify is a wrong token and never an error of ours.
            return None
        with self._records.read() as session:
            return self._if_active(session.get(Site, str(claims[self._oidc.site_claim])))

    def _verifying_key(self, token: str) -> Any:
        if self._published is not None:
            # With its algorithm: a key is never tried by the one that a token's header asks for.
            return self._published.get_signing_key_from_jwt(token)
        return self._public_key

    @staticmethod
    def _if_active(site: Site | None) -> str | None:
        return site.id if site is not None and site.revoked is None else None


def _existing(session: Any, site: str) -> Site:
    row: Site | None = session.get(Site, site)
    if row is None:
        raise UsageError(f"there is no site {site}: add it first", code="unknown_site")
    return row


def _issue(records: Records, site: str) -> str:
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with records.write() as session:
        session.add(
            Token(key_id=key_id, site_id=site, digest=_digest(secret), created=time.time(), expires=None),
        )
    return f"hepalign_{key_id}_{secret}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
