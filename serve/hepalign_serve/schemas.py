"""The JSON bodies of the API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ImageRole = Literal[
    "pmr", "pct", "ict", "pmr-liver", "pct-liver", "ict-liver",
    "pmr-tumour", "pct-tumour", "ict-tumour", "ict-probe-mask", "ict-ablation",
]  # fmt: skip


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewCase(_Body):
    """Nothing needs saying to open a case."""


class PlanRequest(_Body):
    """How to plan."""

    engine: Literal["ants", "learned", "learned+refine"] | None = Field(None, description="default: the release's own")


class GuideRequest(_Body):
    """How to guide."""

    engine: Literal["fast", "refine"] = "refine"
    budget_s: float | None = Field(None, gt=0, le=600, description="seconds that the refinement may take")
    plan: str | None = Field(None, description="job of the plan; default: the newest that succeeded")
    previous: str | None = Field(None, description="an earlier guide of the case, to start from")


class ImageView(BaseModel):
    """A stored image."""

    role: str
    sha256: str
    shape: list[int] | None = None
    spacing_mm: list[float] | None = None
    dicom: bool = Field(False, description="it came as DICOM: results of an iCT can go back as such")
    warnings: list[str] = []


class JobView(BaseModel):
    """Where a job stands."""

    id: str
    case: str
    kind: Literal["plan", "guide"]
    state: Literal["queued", "running", "succeeded", "failed"]
    attempt: int
    step: str
    progress: float = Field(ge=0, le=1)
    queue_position: int
    eta_s: float | None = Field(description="seconds until it should be done; null when unknown")
    created: float
    started: float | None
    finished: float | None
    result: dict[str, Any] | None
    problem: dict[str, Any] | None
    artifacts: list[str]
    notice: str = "research use only"


class CaseView(BaseModel):
    """A case with what is known of it."""

    id: str
    created: float
    images: list[ImageView]
    jobs: list[JobView]
    artifacts: list[str]


class CaseLine(BaseModel):
    """A case in the list."""

    id: str
    created: float


class Cases(BaseModel):
    """The site's own cases, newest first."""

    cases: list[CaseLine]


class ReleaseView(BaseModel):
    """What is served."""

    name: str
    version: str
    digest: str
    networks: dict[str, Any]
    notice: str = "research use only"


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class PartsView(BaseModel):
    """Chunks that have come: number to bytes."""

    parts: dict[int, int]


class Complete(_Body):
    """The end of a resumable upload."""

    parts: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    content_type: str = Field("application/octet-stream", max_length=100)
