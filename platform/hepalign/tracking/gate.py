"""The promotion gate: what a release's evaluation must show before sites may be served with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError, model_validator
from scipy.stats import wilcoxon
from yaml import YAMLError

from hepalign.errors import BadInputError
from hepalign.tracking.provenance import patient_hash

Results = Mapping[str, Any]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Rule):
    """A bound on one mean of table2.csv, or (without a pair) on one of the image scores."""

    pair: str | None = None
    structure: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Threshold:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most")
        return self


class NoRegression(_Rule):
    """A metric in which the release must not fall behind the champion, case by case."""

    pair: str
    structure: str
    metric: str
    larger_is_better: bool
    tolerance: NonNegativeFloat = Field(description="mean worsening that is refused whatever the test says")
    p: float = Field(0.05, gt=0, lt=1, description="one-sided Wilcoxon signed-rank p below which it is refused")


class Policy(_Rule):
    """`mlflow/promotion.yaml`."""

    cohort: str | None = Field(None, description="the evaluation must be of this cohort; null: of any")
    split: str = "test"
    method: str = "proposed-refine"
    min_cases: PositiveInt
    max_failed_share: NonNegativeFloat = 0.0
    thresholds: list[Threshold]
    must_beat: list[str] = Field(default=[], description="methods whose liver error it must undercut, pair by pair")
    no_regression: list[NoRegression] = []
    check_leaks: bool = True


@dataclass(frozen=True)
class Check:
    """One rule's outcome."""

    rule: str
    passed: bool
    found: str


def read_policy(path: Path) -> Policy:
    """The gate's rules.

    Raises:
        BadInputError: `promotion_policy` with the path of what is off.
    """
    try:
        return Policy.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{path.name}: {where}: {first['msg']}", code="promotion_policy") from error
    except (OSError, YAMLError, ValueError) as error:
        raise BadInputError(f"{path.name} is missing or no YAML", code="promotion_policy") from error


def judge(policy: Policy, results: Results, manifest: Mapping[str, Any], champion: Results | None) -> list[Check]:
    """Every rule's outcome for a release's evaluation.

    Args:
        results: the evaluation's results.json.
        manifest: the release's release.json.
        champion: the champion's results on the same cohort, `nameless`; None when there is no champion yet.
    """
    rows = [row for row in results["cases"] if row["method"] == policy.method]
    checks = [*_scope(policy, results, rows)]
    if policy.check_leaks:
        checks.append(_leaks([row for row in nameless(results)["cases"] if row["method"] == policy.method], manifest))
    checks += [_threshold(rule, policy, results) for rule in policy.thresholds]
    checks += [_beats(other, policy.method, results) for other in policy.must_beat]
    if champion is not None:
        ours = nameless(results)
        checks += [_no_regression(rule, policy.method, ours, champion) for rule in policy.no_regression]
    return checks


def nameless(results: Results) -> dict[str, Any]:
    """Results as they may leave the cohort: cases and patients by hashes, which still pair the same case, no words.

    Results that are nameless already stay as they are.
    """
    if results.get("nameless"):
        return dict(results)
    rows = [
        {key: value for key, value in row.items() if key != "message"}
        | {key: patient_hash(str(row[key])) for key in ("case", "patient")}
        for row in results["cases"]
    ]
    images = {key: rows for key, rows in results.get("images", {}).items() if key != "cases"}
    kept = {key: results[key] for key in ("schema", "provenance", "table") if key in results}
    return {**kept, "nameless": True, "images": images, "cases": rows}


def report(checks: Sequence[Check], **facts: Any) -> dict[str, Any]:
    """The gate report that is stored with a release."""
    return {**facts, "passed": all(check.passed for check in checks), "checks": [asdict(check) for check in checks]}


def _scope(policy: Policy, results: Results, rows: Sequence[Mapping[str, Any]]) -> Iterable[Check]:
    cohort = results["provenance"]["cohort"]
    if policy.cohort is not None:
        yield Check(f"evaluated on cohort {policy.cohort}", cohort["name"] == policy.cohort, cohort["name"])
    yield Check(f"evaluated on the {policy.split} split", cohort["split"] == policy.split, cohort["split"])
    cases = {row["case"] for row in rows if row["status"] == "ok"}
    yield Check(f"at least {policy.min_cases} cases", len(cases) >= policy.min_cases, str(len(cases)))
    failed = sum(row["status"] == "failed" for row in rows)
    share = failed / len(rows) if rows else 1.0
    yield Check(
        f"at most {policy.max_failed_share:.0%} failed", share <= policy.max_failed_share, f"{failed} of {len(rows)}"
    )


def _leaks(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Check:
    seen = manifest.get("training_data", {}).get("patients")
    if seen is None:
        return Check("no test patient in training", False, "the release does not say whom it was trained on")
    leaked = {row["case"] for row in rows if row["patient"] in set(seen)}
    return Check("no test patient in training", not leaked, f"{len(leaked)} cases of patients seen in training")


def _threshold(rule: Threshold, policy: Policy, results: Results) -> Check:
    where = f"{rule.pair} {rule.structure}" if rule.pair else rule.structure
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    text = f"{where} {rule.metric} {'≥' if rule.at_least is not None else '≤'} {bound:g}"
    row = _row(results, rule.pair, rule.structure, rule.metric, policy.method)
    if row is None:
        return Check(text, False, "not in the evaluation")
    assert bound is not None
    mean, cases = float(row["mean"]), int(row["n"])
    met = mean >= bound if rule.at_least is not None else mean <= bound
    # a mean over few of the cases says little of the others
    return Check(text, met and cases >= policy.min_cases, f"{mean:.4g} over {cases} cases")


def _row(results: Results, pair: str | None, structure: str, metric: str, method: str) -> Mapping[str, Any] | None:
    """A row of the table that has a mean; without a pair, of the synthesis or inpainting scores."""
    rows: Sequence[Mapping[str, Any]] = results["table"] if pair else results["images"].get(structure, [])
    for row in rows:
        here = pair is None or (row["pair"], row["structure"]) == (pair, structure)
        ours = row["method"] == method or (pair is None and row["method"].startswith(method.partition("-")[0]))
        if here and ours and row["metric"] == metric and row["mean"] is not None:
            return row
    return None


def _beats(other: str, method: str, results: Results) -> Check:
    compared, worse = 0, []
    for pair in dict.fromkeys(row["pair"] for row in results["table"]):
        for metric in ("dense_tre_mm", "tre_mm"):
            rows = [_row(results, pair, "liver", metric, name) for name in (method, other)]
            means = [float(row["mean"]) for row in rows if row is not None]
            if len(means) == len(rows):
                ours, theirs = means
                compared += 1
                # written so that a mean that is no number loses
                worse += [] if ours <= theirs else [f"{pair} {ours:.3g} > {theirs:.3g} mm"]
                break
    found = "; ".join(worse) or (f"below on {compared} pairs" if compared else "not in the evaluation")
    return Check(f"liver error below that of {other}", bool(compared) and not worse, found)


def _no_regression(rule: NoRegression, method: str, results: Results, champion: Results) -> Check:
    text = f"{rule.pair} {rule.structure} {rule.metric} not behind the champion"
    ours, theirs = (_per_case(found, rule, method) for found in (results, champion))
    shared = sorted(ours.keys() & theirs.keys())
    if results["provenance"]["cohort"]["digest"] != champion["provenance"]["cohort"]["digest"] or not shared:
        return Check(text, False, "the champion was not evaluated on this cohort: evaluate it there first")
    sign = -1.0 if rule.larger_is_better else 1.0
    worsening = [sign * (ours[case] - theirs[case]) for case in shared]
    mean = fmean(worsening)
    moved = any(worsening)
    p = float(wilcoxon(worsening, alternative="greater", zero_method="zsplit").pvalue) if moved else 1.0
    found = f"mean worsening {mean:.3g} over {len(shared)} cases, p = {p:.3g}"
    return Check(text, mean <= rule.tolerance and not (p < rule.p and mean > 0), found)


def _per_case(results: Results, rule: NoRegression, method: str) -> dict[str, float]:
    key = rule.metric if rule.structure == "field" else f"{rule.structure}_{rule.metric}"
    return {
        row["case"]: float(row[key])
        for row in results["cases"]
        if row["method"] == method and row["pair"] == rule.pair and row.get(key) is not None
    }
