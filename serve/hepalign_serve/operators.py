"""What a hospital's operator does beside the running service: sites, tokens, the audit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hepalign_serve import audit, sites
from hepalign_serve.records import Records
from hepalign_serve.run import prepare
from hepalign_serve.settings import Settings, load_settings


def add_site(site: str, config: Path | None) -> str:
    """Makes a site; its token, shown this once."""
    with _records(config) as (records, _):
        return sites.add_site(records, site)


def list_sites(config: Path | None) -> list[dict[str, Any]]:
    """Every site with its key ids."""
    with _records(config) as (records, _):
        return sites.list_sites(records)


def rotate_site(site: str, overlap_h: float, config: Path | None) -> str:
    """A new token; the old ones stay valid for `overlap_h` hours."""
    with _records(config) as (records, _):
        return sites.rotate(records, site, overlap_s=3600.0 * overlap_h)


def revoke_site(site: str, config: Path | None) -> None:
    """Refuses the site from now on."""
    with _records(config) as (records, _):
        sites.revoke(records, site)


def export_audit(out: Path, config: Path | None) -> int:
    """Writes the audit as JSON lines; how many."""
    with _records(config) as (records, _), out.open("w", encoding="utf-8") as file:
        return sum(1 for line in audit.export(records) if file.write(line + "\n"))


def verify_audit(config: Path | None) -> str | None:
    """What is wrong with the audit's chain; None when it holds."""
    with _records(config) as (records, settings):
        try:
            audit.verify(records, settings.anchor)
        except audit.AuditBrokenError as error:
            return error.message
        return None


@contextmanager
def _records(config: Path | None) -> Iterator[tuple[Records, Settings]]:
    settings = load_settings(config) if config is not None else Settings()
    records = prepare(settings)
    try:
        yield records, settings
    finally:
        records.engine.dispose()
