"""One unit of work: one method on one case, from images to a JSON-able record. It never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepalign.cases.cohort import Cohort
from hepalign.evaluation import image_metrics
from hepalign.evaluation.gallery import hole_picture, pair_picture
from hepalign.evaluation.methods import Answer, Method, describe
from hepalign.evaluation.pairs import Pair, Patient, score
from hepalign.evaluation.peak_memory import PeakMemory
from hepalign.image.intensity import body_mask
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

Record = dict[str, Any]
RECORD_SCHEMA = 2


@dataclass(frozen=True)
class Work:
    """Everything a worker needs: the cohort and the methods by name. It is pickled once for all units."""

    cohort: Cohort
    methods: Mapping[str, Method]
    pictures: bool = True

    def __call__(self, unit: tuple[str, str]) -> Record:
        """Run (case id, method name)."""
        case_id, name = unit
        case = next(case for case in self.cohort.cases() if case.id == case_id)
        method = self.methods[name]
        record: Record = {
            "schema": RECORD_SCHEMA,
            "case": case.id,
            "patient": case.patient,
            "split": case.split,
            "method": name,
            "family": method.family,
            "rows": [],
            "images": {},
            "pictures": {},
        }
        patient = Patient(self.cohort, case)
        with PeakMemory() as peak:
            try:
                answer = method.solve(patient)
            except Exception as error:  # noqa: BLE001 - a failing case is a row that says so, never a lost run
                answer = Answer(failed=dict.fromkeys(patient.pairs(), describe(error)))
        for pair in patient.pairs():
            record["rows"].append(_row(patient, pair, answer, record, peak.mb, self.pictures))
        record["rows"] = [row for row in record["rows"] if row is not None]
        _made_images(patient, answer, record, self.pictures)
        plain: Record = json.loads(json.dumps(record, default=float))
        return plain


def _row(patient: Patient, pair: Pair, answer: Answer, record: Record, peak_mb: float, pictures: bool) -> Record | None:
    if pair in answer.failed:
        return {"pair": pair, "status": "failed", "message": answer.failed[pair]}
    if pair not in answer.solved:
        return None
    solved = answer.solved[pair]
    if not np.isfinite(solved.field.vectors).all():
        return {"pair": pair, "status": "failed", "message": "the field is not finite"}
    try:
        scores = score(patient, pair, solved.field, solved.backward)
    except Exception as error:  # noqa: BLE001 - as above
        return {"pair": pair, "status": "failed", "message": f"could not be scored: {describe(error)}"}
    message = ""
    if pictures:
        try:
            record["pictures"][pair] = pair_picture(patient, pair, solved.field)
        except Exception as error:  # noqa: BLE001 - the numbers stand without their picture
            message = f"no picture: {describe(error)}"
    return {
        "pair": pair,
        "status": "ok",
        "message": message,
        "seconds": solved.seconds,
        "peak_memory_mb": solved.peak_memory_mb or peak_mb,
        "steps": dict(solved.steps),
        "quality": {k: v for k, v in solved.quality.items() if isinstance(v, str | int | float | list)},
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
    }


def _made_images(patient: Patient, answer: Answer, record: Record, pictures: bool) -> None:
    """Scores of the synthetic CT and of the inpainted CT, where the case knows the truth."""
    try:
        if answer.synthetic_ct is not None:
            record["images"]["synthesis"] = _synthesis(patient, answer.synthetic_ct)
        if answer.inpainted is not None and patient.case.has("ict_clean", "ict_probe_mask"):
            ict, hole, clean = (patient.volume(name) for name in ("ict", "ict_probe_mask", "ict_clean"))
            record["images"]["inpainting"] = image_metrics.inpainting_scores(
                answer.inpainted.as_float(), clean.as_float(), hole.as_mask(), ict.geometry
            )
            if pictures:
                record["pictures"]["hole"] = hole_picture(ict, answer.inpainted, clean, hole)
    except Exception as error:  # noqa: BLE001 - as above
        record["images"]["failed"] = describe(error)


def _synthesis(patient: Patient, synthetic: Volume) -> dict[str, float]:
    mr = patient.volume("pmr")
    truth = patient.volume("pmr_true_ct") if patient.case.has("pmr_true_ct") else None
    if truth is not None and not truth.geometry.same_grid(mr.geometry):
        truth = resample(truth, mr.geometry)
    synthetic = resample(synthetic, mr.geometry)
    body = body_mask(truth if truth is not None else synthetic).as_mask()
    true_ct = None if truth is None else truth.as_float()
    liver = patient.mask("pmr_liver")
    return image_metrics.synthesis_scores(
        synthetic.as_float(), true_ct, mr.as_float(), mr.geometry, body, None if liver is None else liver.as_mask()
    )
