"""What an operator may set; `serve/config/*.yaml` hold the worked examples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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


class Replicas(_Section):
    """How many processes compute one thing, and what each may take."""

    replicas: int = Field(default=1, gt=0, description="always there")
    max_replicas: int = Field(
        default=0, ge=0, description="most under load, each deployment by its own queue; 0: fixed"
    )
    num_cpus: float = Field(default=0.1, ge=0, description="Ray's share; 1 or more on real machines")
    num_gpus: float = Field(default=0.0, ge=0, description="Ray's share of a GPU")
    threads: int = Field(default=0, ge=0, description="torch threads of a replica; 0: one for each core")

    @property
    def most(self) -> int:
        """The largest number of replicas."""
        return max(self.replicas, self.max_replicas)


class Lane(Replicas):
    """Jobs of one kind: how many run at once, and for how long at most."""

    deadline_s: float = Field(default=600.0, gt=0, description="the server's hard limit of one job")
    attempts: int = Field(default=2, gt=0, description="a lost replica is tried again up to this often in all")


class Tls(_Section):
    """A certificate for the service's own port, where no edge stands in front of it."""

    certificate: Path = Field(description="PEM, with the chain")
    key: Path = Field(description="PEM, not encrypted")


class Oidc(_Section):
    """Bearer JWTs (RS256 or ES256) of the hospital's identity provider, beside the site keys."""

    issuer: str
    audience: str
    jwks_url: str = Field(default="", description="where the issuer publishes its keys (they may rotate)")
    public_key_file: Path | None = Field(default=None, description="or one fixed key as PEM")
    site_claim: str = "hepalign_site"

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Oidc:
        if bool(self.jwks_url) == (self.public_key_file is not None):
            raise ValueError("give jwks_url or public_key_file")
        return self


class Settings(_Section):
    """Everything that a running service needs to know."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    metrics_host: str = Field(default="127.0.0.1", description="where /metrics listens; never a site-facing address")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="0 takes a free one")
    tls: Tls | None = Field(default=None, description="certificate and key (PEM files) of the service's own port")
    ingress_replicas: int = Field(default=1, gt=0, description="processes that speak HTTP")
    data_folder: Path = Field(
        default=Path("runs/serve"), description="working folder: images, results, logs; one for all machines"
    )
    store_url: str = Field(
        default="", description="s3://bucket/prefix that keeps images and results; empty: the data folder does"
    )
    identity_key_file: Path | None = Field(
        default=None, description="key of the sealed DICOM identities, equal on all nodes; empty: in the data folder"
    )
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder")
    audit_anchor: Path | None = Field(
        default=None, description="file of the audit's head, outside the database; empty: in the data folder"
    )
    release: str = Field(
        default="",
        description="folder or models:/hepalign@champion; empty: HEPALIGN_RELEASE, else the champion, else the starter",
    )
    unjudged_release: bool = Field(
        default=False, description="development only: serve a folder that has no passed gate report of its own"
    )
    candidate: str = Field(
        default="", description="release that runs in the shadow: compared in logs and metrics, never returned"
    )
    release_poll_s: float = Field(default=30.0, gt=0, description="how often the aliases are looked at")
    retention_days: float = Field(default=30.0, gt=0, description="untouched cases older than this are erased")
    housekeeping_s: float = Field(default=600.0, gt=0, description="how often expired cases are looked for")
    ray_address: str = Field(default="local", description="'local' starts Ray for this service alone")
    ray_cpus: int | None = Field(default=None, description="what Ray shares out when it is started here")
    viewer: bool = Field(default=True, description="serve the viewer's page")
    traces: str = Field(default="", description="OpenTelemetry collector (OTLP over HTTP), e.g. http://otel:4318")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: Limits = Limits()
    plan: Lane = Lane()
    guide: Lane = Lane(deadline_s=120.0)
    synthesis: Replicas = Replicas()
    inpainting: Replicas = Replicas()
    shadow: Replicas = Replicas()
    oidc: Oidc | None = None

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_folder / 'hepalign.db'}"

    @property
    def anchor(self) -> Path:
        """The file of the audit's head."""
        return self.audit_anchor or self.data_folder / "audit.head"

    @property
    def identity_key(self) -> Path:
        """The file of the key that seals DICOM identities."""
        return self.identity_key_file or self.data_folder / "identity.key"


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
