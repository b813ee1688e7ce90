"""What is compared: nothing at all, the peers, and the release with its variants."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute

from hepalign.errors import BadInputError, HepalignError
from hepalign.evaluation.baselines.baseline import Baseline
from hepalign.evaluation.baselines.isolated import run_apart
from hepalign.evaluation.baselines.problem import Modality
from hepalign.evaluation.baselines.task import Task
from hepalign.evaluation.pairs import PAIRS, Pair, Patient
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.guide import guide
from hepalign.inference.planner import PlanEngine, plan
from hepalign.inference.register import Engine, register
from hepalign.inference.synthesise import synthesise
from hepalign.transform.displacement import DisplacementField, compose

PLAN_ENGINES: dict[Engine, PlanEngine] = {"fast": "learned", "refine": "learned+refine"}
MODALITIES: dict[str, Modality] = {"pmr": "mr", "pct": "ct", "ict": "ct"}


@dataclass(frozen=True, eq=False)
class Solved:
    """What a method made of one pair.

    Args:
        field: from the fixed image's points to the moving image's.
        seconds: from images to field.
        steps: seconds by step.
        quality: what a release says of its own result.
        backward: the same method's field with the images exchanged, on the moving image's grid; not in the seconds.
        peak_memory_mb: of the method's own process, where it had one.
    """

    field: DisplacementField
    seconds: float
    steps: Mapping[str, float] = attribute(default_factory=dict)
    quality: Mapping[str, object] = attribute(default_factory=dict)
    backward: DisplacementField | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Running:
    """How every method is run: its threads, its seed, and whether both ways (for the inverse consistency)."""

    threads: int
    seed: int
    both_ways: bool


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
    """Nothing done: the misalignment that everybody starts from, and the iCT with its artefact."""

    def solve(patient: Patient) -> Answer:
        answer = Answer(inpainted=patient.volume("ict") if patient.case.has("ict") else None)
        for pair in patient.pairs():
            moving, fixed = (patient.volume(role).geometry for role in PAIRS[pair])
            still = DisplacementField.identity(fixed)
            answer.solved[pair] = Solved(still, 0.0, backward=DisplacementField.identity(moving))
        return answer

    return Method("identity", "start", "nothing registered, nothing inpainted: where every method starts", solve)


def peer_method(baseline: Baseline, running: Running) -> Method:
    """A peer on the raw images; each pair is registered directly."""

    def solve(patient: Patient) -> Answer:
        pairs = patient.pairs()
        found = run_apart([_task(baseline, patient, pair, running) for pair in pairs])
        answer = Answer()
        for pair, result in zip(pairs, found, strict=True):
            if isinstance(result, str):
                answer.failed[pair] = result
            else:
                answer.solved[pair] = Solved(
                    result.field, result.seconds, result.steps, backward=result.backward,
                    peak_memory_mb=result.peak_memory_mb,
                )  # fmt: skip
        return answer

    return Method(baseline.name, "peer", baseline.settings, solve)


def chained_peer_method(across: Baseline, within: Baseline, running: Running) -> Method:
    """The strongest peers chained as the paper's own workflow is: pMR to pCT by `across`, pCT to iCT by `within`."""

    def solve(patient: Patient) -> Answer:
        if "pMR-iCT" not in patient.pairs() or not patient.case.has("pct"):
            return Answer()
        tasks = [_task(across, patient, "pMR-pCT", running), _task(within, patient, "pCT-iCT", running)]
        before, during = run_apart(tasks)
        if isinstance(before, str) or isinstance(during, str):
            return Answer(failed={"pMR-iCT": before if isinstance(before, str) else str(during)})
        solved = Solved(
            compose(before.field, during.field),
            before.seconds + during.seconds,
            {across.name: before.seconds, within.name: during.seconds},
            backward=_chained(during.backward, before.backward),
            peak_memory_mb=max(before.peak_memory_mb, during.peak_memory_mb),
        )
        return Answer({"pMR-iCT": solved})

    about = f"{across.name} from pMR to pCT composed with {within.name} from pCT to iCT; seconds of both"
    return Method(f"{across.name}+{within.name}", "peer", about, solve)


def _task(baseline: Baseline, patient: Patient, pair: Pair, running: Running) -> Task:
    moving, fixed = PAIRS[pair]
    return baseline.task(
        patient.volume(moving), patient.volume(fixed), fixed_mask=patient.valid(fixed),
        modalities=(MODALITIES[moving], MODALITIES[fixed]), threads=running.threads, seed=running.seed,
        both_ways=running.both_ways,
    )  # fmt: skip


def proposed_method(
    bundle: Bundle, engine: Engine, running: Running, *, name: str | None = None, family: str = "proposed"
) -> Method:
    """The release as it is served: plan, then guide; CT pairs alone where the case has no MR, and an MR without a CT
    becomes a synthetic CT.
    """

    def solve(patient: Patient) -> Answer:
        case = patient.case
        if case.has("pmr", "pct"):
            return _planned(bundle, patient, engine, running)
        if case.has("pmr"):
            return Answer(synthetic_ct=synthesise(bundle, patient.volume("pmr")))
        if not case.has("pct", "ict"):
            return Answer()
        pct, ict = patient.volume("pct"), patient.volume("ict")
        started = time.perf_counter()
        found = register(bundle, pct, ict, engine=engine, probe_mask=patient.mask("ict_probe_mask"))
        seconds = time.perf_counter() - started
        backward = _backward(bundle, ict, pct, engine, running)
        return Answer({"pCT-iCT": Solved(found.field, seconds, found.timings, found.quality, backward)})

    title = name or f"proposed-{engine}"
    about = (
        f"release {bundle.name}: planned by {PLAN_ENGINES[engine]}, guided by {engine}; no labels given; the seconds "
        "of pMR-iCT are the guide's, the plan was made before the procedure; those of pMR-pCT leave out the synthetic "
        "CT, which the field does not need"
    )
    return Method(title, family, about, solve)


def _planned(bundle: Bundle, patient: Patient, engine: Engine, running: Running) -> Answer:
    pct = patient.volume("pct")
    planned = plan(bundle, patient.volume("pmr"), pct, labels={}, engine=PLAN_ENGINES[engine])
    seconds = planned.timings["register"]
    before = _backward(bundle, pct, planned.sct, engine, running)
    answer = Answer(
        {"pMR-pCT": Solved(planned.field_pct_from_pmr, seconds, planned.timings, planned.quality, before)},
        synthetic_ct=planned.sct,
    )
    if not patient.case.has("ict"):
        return answer
    started = time.perf_counter()
    guided = guide(bundle, planned, patient.volume("ict"), required_probe_mask(patient), engine=engine)
    seconds = time.perf_counter() - started
    during = _backward(bundle, guided.inpct, pct, engine, running)
    common = (seconds, guided.timings, guided.quality)
    answer.solved["pCT-iCT"] = Solved(guided.field_ict_from_pct, *common, during)
    answer.solved["pMR-iCT"] = Solved(guided.field_ict_from_pmr, *common, _chained(during, before))
    return Answer(answer.solved, answer.failed, planned.sct, guided.inpct)


def _backward(
    bundle: Bundle, moving: Volume, fixed: Volume, engine: Engine, running: Running
) -> DisplacementField | None:
    """The images exchanged; None when that way fails, which the count of the inverse consistency shows."""
    try:
        return register(bundle, moving, fixed, engine=engine).field if running.both_ways else None
    except HepalignError:
        return None


def _chained(outer: DisplacementField | None, inner: DisplacementField | None) -> DisplacementField | None:
    return None if outer is None or inner is None else compose(outer, inner)


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
