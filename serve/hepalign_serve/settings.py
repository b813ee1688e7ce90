"""What an operator may set; `serve/config/*.yaml` hold the worked examples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hepalign.errors import UsageError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
    """What one site and one request may take."""

    upload_bytes: int = Field(default=512 * 2**20, gt=0, description="largest image upload as sent")
    json_bytes: int = Field(default=2**20, gt=0, description="largest JSON body")
    stall_s: float = Field(default=20.0, gt=0, description="silence after which an upload is given up (408)")
    wait_s: float = Field(default=300.0, gt=0, description="longest Prefer: wait that is honoured")
    requests_per_minute: int = Field(default=600, gt=0, description="requests of one site (429)")
    open_cases: int = Field(default=200, gt=0, description="cases of one site (429)")
    site_bytes: int = Field(default=200 * 2**30, gt=0, description="stored images and results of one site (429)")
    queued_jobs: int = Field(default=32, gt=0, description="jobs waiting in all (503)")
    site_queued_jobs: int = Field(default=8, gt=0, description="jobs waiting of one site (429)")
    parts: int = Field(default=4096, gt=0, description="chunks of one resumable upload (400)")


class Lane(_Section):
    """How many jobs of one kind run at once, and for how long at most."""

    replicas: int = Field(default=1, gt=0)
    num_cpus: float = Field(default=0.1, ge=0, description="Ray's share; 1 or more on real machines")
    num_gpus: float = Field(default=0.0, ge=0)
    threads: int = Field(default=1, gt=0, description="torch threads of a replica")
    deadline_s: float = Field(default=600.0, gt=0, description="the server's hard limit of one job")
    attempts: int = Field(default=2, gt=0, description="a lost replica is tried again up to this often in all")


class Oidc(_Section):
    """Bearer JWTs of the hospital's identity provider, beside the site keys."""

    issuer: str
    audience: str
    public_key_file: Path = Field(description="PEM of the issuer's RS256/ES256 key")
    site_claim: str = "hepalign_site"


class Settings(_Section):
    """Everything that a running service needs to know."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    metrics_host: str = Field(default="127.0.0.1", description="where /metrics listens; never a site-facing address")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="0 takes a free one")
    data_folder: Path = Path("runs/serve")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder")
    audit_anchor: Path | None = Field(default=None, description="file that holds the audit's head outside the database")
    release: str = Field(default="", description="folder or models:/hepalign@champion; empty: HEPALIGN_RELEASE")
    unjudged_release: bool = Field(
        default=False, description="development only: serve a folder that has no passed gate report of its own"
    )
    release_poll_s: float = Field(default=30.0, gt=0, description="how often the alias is looked at")
    retention_days: float = Field(default=30.0, gt=0, description="untouched cases older than this are erased")
    housekeeping_s: float = Field(default=600.0, gt=0, description="how often expired cases are looked for")
    ray_address: str = Field(default="local", description="'local' starts Ray for this service alone")
    ray_cpus: int | None = None
    viewer: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: Limits = Limits()
    plan: Lane = Lane()
    guide: Lane = Lane(deadline_s=120.0)
    oidc: Oidc | None = None

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_folder / 'hepalign.db'}"

    @property
    def anchor(self) -> Path:
        """The file of the audit's head."""
        return self.audit_anchor or self.data_folder / "audit.head"


def load_settings(path: Path) -> Settings:
    """Settings from a YAML file.

    Raises:
        UsageError: `unknown_setting` naming the key's path, when a key is unknown or a value cannot be used.
    """
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the settings {path.name}: give a YAML file", code="bad_settings") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path.name}: {where}: {first['msg']}", code="bad_settings") from error
