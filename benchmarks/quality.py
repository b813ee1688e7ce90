"""The quality flags: do accept, review and reject separate good registrations, poor ones and wrong patients?

Usage: python benchmarks/quality.py --cases 10 --first-seed 80000              judge the verdicts on these seeds
       python benchmarks/quality.py --cases 15 --first-seed 40000 --calibrate  fit inference/quality.json on them
`--modality mr` does the same for an MR and a CT. `--rows FILE` keeps what was registered (one JSON a line) and goes on
from it; all that it holds is fitted or judged. Each seed gives a good pair, one that hardly moves, one with a motion
beyond what is trained for, one from a wrong start, one whose artefact is masked in part only (two CTs), and one of two
patients; every other phantom is randomised. With HEPALIGN_REAL_DATA as many again are simulated from a real CT, or, for
MR, made of sarcoma patients by moving their CTs: fitted on those outside the test split, judged on the others. Two CTs:
every second seed gives two small bodies of random texture besides, in which nothing but the outline is alike.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize, nnls

from hepalign.cases.phantom import make_case
from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.sources.moved import draw_move, moved_ct
from hepalign.cases.sources.public import sarcoma_cohort
from hepalign.cases.sources.simulate import simulate_pair
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign.inference import quality
from hepalign.inference.bundle import Bundle
from hepalign.inference.pair import Modality
from hepalign.inference.quality import ErrorModel, PatientModel
from hepalign.inference.register import Clock, Registration, deform, start_matrix
from hepalign.transform import linear
from hepalign.transform.displacement import DisplacementField
from scene import release
from timing import single

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))
from small_pairs import body_ct, small_pair

# Coarse and finer images in turn: they are matched on grids of their own.
SIZES = (((96, 96, 72), 3.7), ((128, 128, 96), 2.8))
KINDS: dict[Modality, dict[str, tuple[str, ...]]] = {
    "ct": dict.fromkeys(("phantom", "real"), ("good", "still", "beyond", "start", "artefact", "wrong")),
    "mr": {"phantom": ("good", "still", "beyond", "start", "wrong"), "sarcoma": ("good", "still", "start", "wrong")},
}
# The moving and the fixed image.
ROLES: dict[Modality, tuple[str, str]] = {"ct": ("pct", "ict"), "mr": ("pmr", "pct")}
POOR_MM = 5.0
# An image of another patient has no error; in the fit it counts as this much.
WRONG_MM = 25.0
STILL = PhantomConfig(breathing_mm=(0.5, 2.0), rigid_residual_mm=(0.0, 1.0))
BEYOND = PhantomConfig(breathing_mm=(30.0, 45.0), rigid_residual_mm=(11.0, 17.0))
NOISY = PhantomConfig(needles=(3, 3), ct_noise_hu=(25.0, 45.0))
CONFIGS = {"still": STILL, "beyond": BEYOND, "artefact": NOISY}
# Of the poor this share is to be caught on the calibration cases, of the good this share not to be rejected for their
# expected error: more than asked.
CAUGHT, SPARED = 0.98, 0.98
RIDGE, PATIENT_RIDGE = 1.0, 0.3
# What two patients differ by. The way back is less consistent in a difficult pair of one patient than between two,
# whose fields are steady where nothing fits, and there was more to gain: these weights come out negative. This share
# of the wrong patients is to be beyond the limit; the expected error rejects others.
PATIENT_MEASURES = ("worst_disagreement", "disagreement", "spread_mm", "inverse_consistency_mm", "strain", "gain")
FOUND = 0.97
# Where the images agree by less than this factor (a logarithm) better than they did at the start, nothing was found
# to fit, unless they agreed already.
LEAST_GAIN = 0.4
ERROR_MEASURES = ("disagreement", "worst_disagreement", "inverse_consistency_mm", "spread_mm", "strain")


@dataclass(frozen=True)
class Row:
    """One registration: what kind of pair, what it showed, how far off it was (None: another patient)."""

    kind: str
    seed: int
    measures: dict[str, float]
    error_mm: float | None
    tumour_error_mm: float | None
    tumour_spread_mm: float | None
    status: str

    @property
    def log_error(self) -> float:
        """What the fit aims at."""
        return float(np.log(WRONG_MM if self.error_mm is None else max(self.error_mm, 0.3)))


def main() -> None:
    """Register, then fit or judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=60000)
    parser.add_argument("--rows", type=Path, default=None)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--engine", default="refine", choices=["fast", "refine"])
    parser.add_argument("--modality", default="ct", choices=["ct", "mr"])
    words = parser.parse_args()
    torch.set_num_threads(1)
    rows = _read(words.rows)
    done = {(row.kind, row.seed) for row in rows}
    bundle = release()
    for seed in range(words.first_seed, words.first_seed + words.cases):
        for kind, pair in _pairs(seed, done, words.modality, words.calibrate):
            rows.append(_row(kind, seed, pair, bundle, words.engine, words.modality))
            if words.rows is not None:
                with words.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(rows[-1])) + "\n")
    if words.calibrate:
        model = fit(rows)
        path = Path(quality.__file__).with_name(quality.MODEL_FILE)
        models = json.loads(path.read_text(encoding="utf-8")) | {words.modality: model.model_dump()}
        path.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
        quality.error_model.cache_clear()
    # kept rows may have been judged by another model
    judging = quality.error_model(words.modality)
    state([_judged(row, judging) for row in rows], judging)


@dataclass(frozen=True)
class _Pair:
    """What is registered, and what is known of it: no truth for two patients, a liver and tumours in phantoms."""

    moving: Volume
    fixed: Volume
    mask: Volume | None = None
    truth: DisplacementField | None = None
    liver: Volume | None = None
    tumours: Volume | None = None
    turn: np.ndarray | None = None


Maker = Callable[[str, int], _Pair]


def _pairs(seed: int, done: set[tuple[str, int]], modality: Modality, calibrate: bool) -> Iterator[tuple[str, _Pair]]:
    """The pairs of a seed that are not done yet."""
    real = os.environ.get("HEPALIGN_REAL_DATA")
    shape, spacing_mm = SIZES[seed // 2 % 2]

    @cache
    def phantom(config: PhantomConfig, at: int) -> PhantomCase:
        return make_case(at, shape, spacing_mm, bool(at % 2), config)

    makers: dict[str, Maker] = {"phantom": lambda kind, at: _of_case(kind, at, phantom, phantom, modality)}
    if real and modality == "mr":
        makers["sarcoma"] = _Sarcoma(Path(real), test=not calibrate)
    elif real:
        ct = read_nifti(Path(real) / "liver-ct/totalsegmentator/ct.nii.gz")

        @cache
        def simulated(config: PhantomConfig, at: int) -> PhantomCase:
            return simulate_pair(ct, None, at, bool(at % 2), shape=shape, spacing_mm=spacing_mm, config=config)

        makers["real"] = lambda kind, at: _of_case(kind, at, simulated, phantom, modality)
    for source, make in makers.items():
        for kind in KINDS[modality][source]:
            if (f"{source} {kind}", seed) not in done:
                pair = make(kind, seed)
                yield f"{source} {kind}", replace(pair, turn=_turn(seed, pair.fixed)) if kind == "start" else pair
    if modality == "ct" and seed % 2 == 0 and ("texture wrong", seed) not in done:
        small = small_pair(seed)
        yield "texture wrong", _Pair(body_ct(seed + 500), small.fixed, small.probe_mask)


Make = Callable[[PhantomConfig, int], PhantomCase]


def _of_case(kind: str, seed: int, make: Make, make_other: Make, modality: Modality) -> _Pair:
    case = make(CONFIGS.get(kind, PhantomConfig()), seed)
    moving, fixed = ROLES[modality]
    v = case.volumes
    mask = v.get(f"{fixed}_probe_mask")
    if kind == "wrong":
        return _Pair(_brought(make_other(PhantomConfig(), seed + 500).volumes[moving], v[fixed]), v[fixed], mask)
    if kind == "artefact":
        assert mask is not None
        shown = mask.as_mask().copy()
        shown[: shown.shape[0] // 2] = False
        mask = mask.with_data(shown)
    truth = case.fields[f"truth_field_{fixed}_from_{moving}"]
    return _Pair(v[moving], v[fixed], mask, truth, v.get(f"{fixed}_liver"), v.get(f"{fixed}_tumour"))


class _Sarcoma:
    """Real MRs and CTs of patients of the test split or outside it, a CT in another pose or as it was aligned."""

    def __init__(self, real_data: Path, *, test: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        entries = sarcoma_cohort(real_data, self._folder.name).cases
        self._files = [entry.files for entry in entries if (entry.split == "test") == test]

    def _volume(self, number: int, role: str) -> Volume:
        return read_nifti(Path(self._folder.name) / self._files[number % len(self._files)][role].path)

    def __call__(self, kind: str, seed: int) -> _Pair:
        mr, ct = self._volume(seed, "pmr"), self._volume(seed, "pct")
        if kind == "still":
            return _Pair(mr, ct, truth=DisplacementField.identity(ct.geometry))
        truth = draw_move(ct.geometry, seed)
        moved = moved_ct(ct, truth)
        if kind == "wrong":
            return _Pair(_brought(self._volume(seed + 1, "pmr"), moved), moved)
        return _Pair(mr, moved, truth=truth)


def _brought(image: Volume, fixed: Volume) -> Volume:
    """The image in the same place: nothing but the anatomy may tell two patients apart."""
    affine = image.geometry.affine.copy()
    affine[:3, 3] += fixed.geometry.centre_mm - image.geometry.centre_mm
    return Volume(image.data, Geometry(image.geometry.shape, affine))


def _turn(seed: int, fixed: Volume) -> np.ndarray:
    """A wrong start."""
    rng = np.random.default_rng(seed)
    turn = linear.rotation(rng.uniform(-30, 30, 3), fixed.geometry.centre_mm)
    turn[:3, 3] += rng.uniform(25, 55) * _direction(rng)
    return turn


def _direction(rng: np.random.Generator) -> np.ndarray:
    way = rng.standard_normal(3)
    return np.asarray(way / np.linalg.norm(way))


def _row(kind: str, seed: int, pair: _Pair, bundle: Bundle, engine, modality: Modality) -> Row:  # type: ignore[no-untyped-def]
    matrix = start_matrix(pair.moving, pair.fixed, pair.mask, None, modality)
    if pair.turn is not None:
        matrix = matrix @ pair.turn
    done = deform(
        bundle, pair.moving, pair.fixed, matrix, engine=engine, probe_mask=pair.mask, clock=Clock(), modality=modality
    )
    error, tumour, spread = None, None, None
    if pair.truth is not None:
        wide = np.linalg.norm(done.field.vectors - pair.truth.vectors, axis=-1)
        error = float(wide[_region(pair)].mean())
        tumour, spread = _at_tumour(pair, done, wide)
    return Row(kind, seed, done.evidence.measures(), error, tumour, spread, str(done.quality["status"]))


def _region(pair: _Pair) -> np.ndarray:
    """The liver, or the body's middle where no liver is known."""
    if pair.liver is not None and pair.liver.as_mask().any():
        return pair.liver.as_mask()
    geometry = pair.fixed.geometry
    near = np.linalg.norm(geometry.grid_mm() - geometry.centre_mm, axis=-1) < 90
    return near & (pair.fixed.as_float() > -50)


def _at_tumour(pair: _Pair, done: Registration, wide: np.ndarray) -> tuple[float | None, float | None]:
    if pair.tumours is None or not np.asarray(pair.tumours.data).any():
        return None, None
    inside = np.asarray(pair.tumours.data) > 0
    points = pair.tumours.geometry.index_to_world(np.argwhere(inside))
    grid = done.levels.quarter_geometry
    index = np.clip(np.rint(grid.world_to_index(points)).astype(int), 0, np.array(grid.shape) - 1)
    return float(wide[inside].mean()), float(done.spread_mm[..., 0].numpy()[tuple(index.T)].mean())


def fit(rows: list[Row]) -> ErrorModel:
    """Ridge regression of the log error, no weight negative, and limits that catch and spare as asked."""
    x = np.array([[row.measures[name] for name in ERROR_MEASURES] for row in rows])
    y = np.array([row.log_error for row in rows])
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / deviation
    # what looks worse by any measure is never trusted more for it
    ridged = np.vstack([z, np.sqrt(RIDGE) * np.eye(x.shape[1])])
    slope = nnls(ridged, np.concatenate([y - y.mean(), np.zeros(x.shape[1])]))[0] / deviation
    expected = np.exp(y.mean() + (x - mean) @ slope)
    errors = np.array([np.inf if row.error_mm is None else row.error_mm for row in rows])
    good, poor = errors <= POOR_MM, (errors > POOR_MM) & np.isfinite(errors)
    review = float(np.quantile(expected[poor], 1 - CAUGHT))
    ratios = [r.tumour_error_mm / r.tumour_spread_mm for r in rows if r.tumour_error_mm and r.tumour_spread_mm]
    return ErrorModel(
        intercept=float(y.mean() - mean @ slope),
        weights={name: float(value) for name, value in zip(ERROR_MEASURES, slope, strict=True)},
        review_mm=review,
        reject_mm=max(review, float(np.quantile(expected[good], SPARED))),
        tumour_scale=float(np.median(ratios)),
        two_patients=fit_patients(rows),
    )


def fit_patients(rows: list[Row]) -> PatientModel:
    """Logistic regression of wrong patients against good registrations, and the limit that finds as asked."""
    known = [row for row in rows if row.error_mm is None or row.error_mm <= POOR_MM]
    x = np.array([[row.measures[name] for name in PATIENT_MEASURES] for row in known])
    wrong = np.array([row.error_mm is None for row in known])
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    z = np.column_stack([(x - mean) / deviation, np.ones(len(x))])
    # both kinds count alike, however many there are of each
    share = np.where(wrong, 0.5 / wrong.mean(), 0.5 / (1 - wrong.mean()))

    def loss(beta: np.ndarray) -> float:
        odds = z @ beta
        return float(
            (share * (np.logaddexp(0, odds) - wrong * odds)).sum() + PATIENT_RIDGE / 2 * (beta[:-1] ** 2).sum()
        )

    beta = minimize(loss, np.zeros(z.shape[1])).x
    slope = beta[:-1] / deviation
    intercept = float(beta[-1] - mean @ slope)
    odds = intercept + x @ slope
    disagreement = np.array([row.measures["disagreement"] for row in known])
    idle = np.array([row.measures["gain"] < LEAST_GAIN for row in known])
    return PatientModel(
        intercept=intercept,
        weights={name: float(value) for name, value in zip(PATIENT_MEASURES, slope, strict=True)},
        limit=float(np.quantile(odds[wrong & ~idle], 1 - FOUND)),
        least_gain=LEAST_GAIN,
        most_disagreement=float(disagreement[idle & wrong].min() + disagreement[idle & ~wrong].max()) / 2,
    )


def _judged(row: Row, model: ErrorModel) -> Row:
    expected_mm = model.expected_error_mm(row.measures)
    status = "accept" if expected_mm <= model.review_mm else "review"
    refused = expected_mm > model.reject_mm or model.two_patients.suspects(row.measures)
    return Row(**{**vars(row), "status": "reject" if refused else status})


def state(rows: list[Row], model: ErrorModel) -> None:
    """The figures."""
    same = [row for row in rows if row.error_mm is not None]
    poor = [row for row in same if row.error_mm > POOR_MM]
    good = [row for row in same if row.error_mm <= POOR_MM]
    wrong = [row for row in rows if row.error_mm is None]
    facts = {"good": len(good), "poor": len(poor), "wrong": len(wrong)}
    ranks = {"accept": 0, "review": 1, "reject": 2}
    ordered = [
        np.sign(model.expected_error_mm(a.measures) - model.expected_error_mm(b.measures)) for a in poor for b in good
    ]
    area = float(np.mean(ordered) + 1) / 2
    single("AUC of the expected error for TRE > 5 mm", [area], "", at_least=0.85, **facts)
    single("poor ones not accepted", [float(np.mean([ranks[row.status] > 0 for row in poor]))], "", at_least=0.95)
    single("good ones rejected", [float(np.mean([row.status == "reject" for row in good]))], "", at_most=0.05)
    single("sent to review", [float(np.mean([row.status == "review" for row in same]))], "", at_most=0.3)
    single("wrong patients rejected", [float(np.mean([row.status == "reject" for row in wrong]))], "", at_least=0.95)


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
