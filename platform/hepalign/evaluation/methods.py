"""What is compared: nothing at all, the peers, and the release with its variants."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

from hepalign.errors import BadInputError
from hepalign.evaluation.baselines.baseline import Baseline
from hepalign.evaluation.baselines.prepare import Modality
from hepalign.evaluation.pairs import PAIRS, Pair, Patient
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.guide import guide
from hepalign.inference.planner import PlanEngine, plan
from hepalign.inference.register import Engine, register
from hepalign.transform.displacement import DisplacementField, compose

PLAN_ENGINES: dict[Engine, PlanEngine] = {"fast": "learned", "refine": "learned+refine"}
MODALITIES: dict[str, Modality] = {"pmr": "mr", "pct": "ct", "ict": "ct"}


@dataclass(frozen=True, eq=False)
class Solved:
    """What a method made of one pair."""

    field: DisplacementField
    seconds: float
    steps: Mapping[str, float] = attribute(default_factory=dict)
    quality: Mapping[str, object] = attribute(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method made of one case: its fields, why a pair has none, and the images on the way."""

    solved: dict[Pair, Solved] = attribute(default_factory=dict)
    failed: dict[Pair, str] = attribute(default_factory=dict)
    synthetic_ct: Volume | None = None
    inpainted: Volume | None = None


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Args:
        name: unique in an evaluation.
        family: for colours and grouping: start, peer, proposed, ablation.
        about: settings and what it saw, for the report.
        solve: from a case's images to fields.
    """

    name: str
    family: str
    about: str
    solve: Callable[[Patient], Answer]


def identity_method() -> Method:
    """No registration: the misalignment that everybody starts from."""

    def solve(patient: Patient) -> Answer:
        answer = Answer()
        for pair in patient.pairs():
            geometry = patient.volume(PAIRS[pair][1]).geometry
            answer.solved[pair] = Solved(DisplacementField.identity(geometry), 0.0)
        return answer

    return Method("identity", "start", "no registration: where every method starts", solve)


def peer_method(baseline: Baseline, *, threads: int, seed: int) -> Method:
    """A peer on the raw images; each pair is registered directly."""

    def solve(patient: Patient) -> Answer:
        answer = Answer()
        for pair in patient.pairs():
            moving, fixed = PAIRS[pair]
            images = patient.volume(moving), patient.volume(fixed)
            started = time.perf_counter()
            try:
                found = baseline.register(
                    *images,
                    fixed_mask=patient.valid(fixed),
                    modalities=(MODALITIES[moving], MODALITIES[fixed]),
                    threads=threads,
                    seed=seed,
                )
            except Exception as error:  # noqa: BLE001 - a peer that fails on one pair is a row that says so
                answer.failed[pair] = describe(error)
                continue
            answer.solved[pair] = Solved(found, time.perf_counter() - started)
        return answer

    return Method(baseline.name, "peer", baseline.settings, solve)


def chained_peer_method(across: Baseline, within: Baseline, *, threads: int, seed: int) -> Method:
    """The strongest peers chained as the paper's own workflow is: pMR to pCT by `across`, pCT to iCT by `within`."""

    def solve(patient: Patient) -> Answer:
        if "pMR-iCT" not in patient.pairs() or not patient.case.has("pct"):
            return Answer()
        started = time.perf_counter()
        common: dict[str, Any] = {"threads": threads, "seed": seed}
        before = across.register(patient.volume("pmr"), patient.volume("pct"), modalities=("mr", "ct"), **common)
        during = within.register(
            patient.volume("pct"), patient.volume("ict"), fixed_mask=patient.valid("ict"), **common
        )
        return Answer({"pMR-iCT": Solved(compose(before, during), time.perf_counter() - started)})

    about = f"{across.name} from pMR to pCT composed with {within.name} from pCT to iCT"
    return Method(f"{across.name}+{within.name}", "peer", about, solve)


def proposed_method(bundle: Bundle, engine: Engine, *, name: str | None = None, family: str = "proposed") -> Method:
    """The release as it is served: plan, then guide; CT pairs alone where the case has no MR."""

    def solve(patient: Patient) -> Answer:
        case = patient.case
        if case.has("pmr", "pct"):
            return _planned(bundle, patient, engine, PLAN_ENGINES[engine])
        if not case.has("pct", "ict"):
            return Answer()
        started = time.perf_counter()
        found = register(
            bundle,
            patient.volume("pct"),
            patient.volume("ict"),
            engine=engine,
            probe_mask=patient.mask("ict_probe_mask"),
        )
        return Answer({"pCT-iCT": Solved(found.field, time.perf_counter() - started, found.timings)})

    title = name or f"proposed-{engine}"
    about = f"release {bundle.name}: planned by {PLAN_ENGINES[engine]}, guided by {engine}; no labels given"
    return Method(title, family, about, solve)


def _planned(bundle: Bundle, patient: Patient, engine: Engine, plan_engine: PlanEngine) -> Answer:
    started = time.perf_counter()
    planned = plan(bundle, patient.volume("pmr"), patient.volume("pct"), labels={}, engine=plan_engine)
    answer = Answer(
        {"pMR-pCT": Solved(planned.field_pct_from_pmr, time.perf_counter() - started, planned.timings)},
        synthetic_ct=planned.sct,
    )
    if not patient.case.has("ict"):
        return answer
    started = time.perf_counter()
    guided = guide(bundle, planned, patient.volume("ict"), required_probe_mask(patient), engine=engine)
    seconds = time.perf_counter() - started
    answer.solved["pCT-iCT"] = Solved(guided.field_ict_from_pct, seconds, guided.timings, guided.quality)
    answer.solved["pMR-iCT"] = Solved(guided.field_ict_from_pmr, seconds, guided.timings, guided.quality)
    return Answer(answer.solved, answer.failed, planned.sct, guided.inpct)


def required_probe_mask(patient: Patient) -> Volume:
    """The coarse probe mask of a case that has an iCT.

    Raises:
        BadInputError: `missing_role` where there is none.
    """
    mask = patient.mask("ict_probe_mask")
    if mask is None:
        raise BadInputError(f"case {patient.case.id} has an iCT and no ict_probe_mask", code="missing_role")
    return mask


def describe(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
