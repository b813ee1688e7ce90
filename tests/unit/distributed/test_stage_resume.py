"""Each real stage, killed in the middle of an epoch and resumed, ends bitwise where an uninterrupted run ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_cohort import small_cohort

from hepalign.config import RunConfig, load_config
from hepalign.distributed.workers import build_stage, train
from hepalign.stages.stage import Batch, Stage, Update

TINY: dict[str, dict[str, object]] = {
    "synthesis": {
        "data": {"patch": [16, 16, 16], "spacing_mm": 10.0, "samples_per_case": 2},
        "net": {"width": 2, "blocks": 1},
        "discriminator": {"width": 2},
        "losses": {"voxels": 500},
        "buffer": 3,
    },
    "inpainting": {
        "data": {"patch": [16, 16, 16], "spacing_mm": 10.0, "samples_per_case": 2},
        "net": {"widths": [2, 4]},
    },
    "registration": {"data": {"shape": [48, 48, 48], "spacing_mm": 7.0}},
}


class KilledError(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort(tmp_path_factory.mktemp("cohort"))


def run_config(stage: str, cohort: Path, out: Path) -> RunConfig:
    data = {**TINY[stage]["data"], "cohorts": [str(cohort)]}  # type: ignore[dict-item]
    training = {"epochs": 2, "steps_per_epoch": 3, "checkpoint_every_steps": 1}
    platform = {"out": str(out), "training": training, "tracking": {"enabled": False}}
    return load_config(stage, {**TINY[stage], "data": data, **platform})


def killed_at(batch_number: int) -> object:
    """A stage factory whose stage dies before that batch."""

    def build(config: RunConfig, device: torch.device) -> Stage:
        stage = build_stage(config, device)
        whole, seen = stage.updates, iter(range(1, 1000))

        def updates(batch: Batch) -> Iterator[Update]:
            if next(seen) == batch_number:
                raise KilledError
            yield from whole(batch)

        stage.updates = updates  # type: ignore[method-assign]
        return stage

    return build


@pytest.mark.parametrize("stage", list(TINY))
def test_a_killed_stage_resumes_bitwise(stage: str, cohort: Path, tmp_path: Path) -> None:
    whole = train(run_config(stage, cohort, tmp_path / "whole"))
    with pytest.raises(KilledError):
        train(run_config(stage, cohort, tmp_path / "broken"), build=killed_at(6))  # type: ignore[arg-type]
    resumed = train(run_config(stage, cohort, tmp_path / "broken"), resume=True)
    for name in ("curves.csv", f"{stage}.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
