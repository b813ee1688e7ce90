"""Both steps on one case of a cohort, for scoring many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hepalign.cases.case import Case
from hepalign.cases.cohort import Cohort
from hepalign.errors import BadInputError
from hepalign.inference.bundle import Bundle
from hepalign.inference.guide import guide
from hepalign.inference.planner import plan

NEEDED = ("pmr", "pct", "ict", "ict_probe_mask")
PLAN_LABELS = ("pmr_liver", "pmr_tumour", "pct_liver", "pct_tumour")


def run_case(bundle: Bundle, cohort: Cohort, case: Case, out: Path | None = None) -> dict[str, Any]:
    """Plan and guide a case; returns the content of its result.json.

    Args:
        out: where the guide's files go; None: they are not written.

    Raises:
        BadInputError: `missing_role` when the case lacks an image, and what `plan` and `guide` raise.
    """
    missing = [name for name in NEEDED if not case.has(name)]
    if missing:
        raise BadInputError(f"case {case.id} has no {', '.join(missing)}", code="missing_role")
    labels = {name: cohort.volume(case, name) for name in PLAN_LABELS if case.has(name)}
    made = plan(bundle, cohort.volume(case, "pmr"), cohort.volume(case, "pct"), labels=labels)
    ict_labels = {"ict_liver": cohort.volume(case, "ict_liver")} if case.has("ict_liver") else None
    mask = cohort.volume(case, "ict_probe_mask")
    result = guide(bundle, made, cohort.volume(case, "ict"), mask, labels=ict_labels)
    if out is not None:
        result.save(out)
    return {"case": case.id, **result.summary()}
