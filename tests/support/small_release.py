"""Releases of the smallest networks, and evaluations of them with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hepalign.inference.bundle import config_digest
from hepalign.nets.checkpoint import save_weights
from hepalign.nets.cyclegan import GeneratorConfig, ResNetGenerator
from hepalign.nets.partial_conv import PConvUNet
from hepalign.nets.regnet import RegNet, RegNetConfig
from hepalign.nets.unet import InpaintingNetConfig
from hepalign.tracking.provenance import patient_hash
from hepalign.tracking.releases import build_release


def small_release(folder: Path, seed: int = 0, patients: tuple[str, ...] = ("trained-on",)) -> Path:
    """A release of three tiny random networks, as three trainings would leave them."""
    torch.manual_seed(seed)
    trainings = folder / "trainings"
    generator, registration = GeneratorConfig(width=2, blocks=1), RegNetConfig()
    inpainting = InpaintingNetConfig(widths=(2, 2, 2))
    save_weights(ResNetGenerator(generator), generator, trainings / "synthesis", "synthesis")
    save_weights(PConvUNet(inpainting), inpainting, trainings / "inpainting", "inpainting")
    save_weights(RegNet(registration), registration, trainings / "registration", "registration")
    stages = ("synthesis", "inpainting", "registration")
    for stage in stages:
        told = {
            "stage": stage,
            "epochs": 1,
            "facts": {"commit": "abc"},
            "preprocessing": {"spacing_mm": 2.0},
            "data": {"cohorts": {"made-up": "0" * 64}, "patients": [patient_hash(name) for name in patients]},
        }
        (trainings / stage / "training.json").write_text(json.dumps(told), encoding="utf-8")
        (trainings / stage / "metrics.json").write_text(json.dumps({"val/error": 1.0}), encoding="utf-8")
    return build_release({stage: trainings / stage for stage in stages}, folder / "release", version=str(seed))


def evaluation(
    folder: Path, release: Path, tre_mm: Mapping[str, float], dice: float = 0.95, patient: str = "patient-{}"
) -> Path:
    """An evaluation's results.json: one pCT-iCT row a case, and the table of their means."""
    manifest = json.loads((release / "release.json").read_text(encoding="utf-8"))
    rows = [
        {
            "case": case, "patient": patient.format(case), "split": "test", "method": "proposed-refine",
            "pair": "pCT-iCT", "status": "ok", "message": f"{case} is fine",
            "liver_tre_mm": value, "liver_dice": dice, "folding_fraction": 0.0,
        }
        for case, value in tre_mm.items()
    ]  # fmt: skip
    means: dict[tuple[str, str], float] = {
        ("liver", "tre_mm"): sum(tre_mm.values()) / len(tre_mm),
        ("liver", "dice"): dice,
        ("field", "folding_fraction"): 0.0,
    }
    table = [
        {"pair": "pCT-iCT", "structure": s, "metric": m, "method": "proposed-refine", "mean": mean, "n": len(rows)}
        for (s, m), mean in means.items()
    ]
    results: dict[str, Any] = {
        "schema": 1,
        "provenance": {
            "cohort": {"name": "made-up", "digest": "c" * 64, "split": "test"},
            "release": {
                "digests": {stage: entry["sha256"] for stage, entry in manifest["networks"].items()},
                "config_digests": {
                    stage: config_digest(json.loads((release / f"{stage}.json").read_text(encoding="utf-8")))
                    for stage in manifest["networks"]
                },
            },
        },
        "cases": rows,
        "table": table,
        "images": {"synthesis": [], "inpainting": [], "cases": [{"case": case} for case in tre_mm]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder
