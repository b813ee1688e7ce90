"""How long a training step waits for its batch, per stage, on prepared arrays.

Usage: python benchmarks/loader_wait.py [--stages synthesis inpainting registration] [--steps 12] [--size 96]
Peer: the same steps with the batches made in line, as without reading ahead. One thread for the step. Target: <= 5 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.sources.generate import phantom_cohort
from hepalign.stages.inpainting import InpaintingConfig, InpaintingStage
from hepalign.stages.registration import RegistrationConfig, RegistrationStage
from hepalign.stages.stage import Batch, Stage
from hepalign.stages.synthesis import SynthesisConfig, SynthesisStage
from timing import single

STAGES = {
    "synthesis": lambda cohort: SynthesisStage(SynthesisConfig(), [cohort], torch.device("cpu")),
    "inpainting": lambda cohort: InpaintingStage(InpaintingConfig(), [cohort], torch.device("cpu")),
    "registration": lambda cohort: RegistrationStage(RegistrationConfig(), [cohort], torch.device("cpu")),
}


def main() -> None:
    """Print one line a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=int, default=96)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        phantom_cohort(folder, cases=3, seed=0, shape=(words.size,) * 3, spacing_mm=320 / words.size)
        cohort = open_cohort(Path(folder))
        for name in words.stages:
            waiting, facts = measure(name, cohort, words.steps)
            single(f"share of a training step spent waiting for data, {name}", [waiting], "", at_most=0.05, **facts)


def measure(name: str, cohort: Cohort, steps: int) -> tuple[float, dict[str, float]]:
    """The share of wall time that `steps` training steps wait; then the same without reading ahead, and CPU seconds."""
    stage: Stage = STAGES[name](cohort)
    stage.begin_epoch(0, 1)
    for _ in batches(stage, 1000, epoch=0):
        # every case is prepared now, as from the second epoch on
        pass
    start, waited, made = time.perf_counter(), 0.0, 0
    reading = batches(stage, steps, epoch=1)
    cpu = time.thread_time()
    while True:
        asked = time.perf_counter()
        batch = next(reading, None)
        # the first batch of a run has nothing to hide behind
        waited += time.perf_counter() - asked if made else 0.0
        if batch is None:
            break
        made += 1
        for update in stage.updates(batch):
            update.optimizer.zero_grad()
            update.loss.backward()
            update.optimizer.step()
    total = time.perf_counter() - start
    step_s = (time.thread_time() - cpu) / max(made, 1)
    process = time.process_time()
    count = sum(1 for _ in batches(stage, steps, epoch=2))
    batch_s = (time.process_time() - process) / max(count, 1)
    in_line = batch_s / (batch_s + step_s)
    facts = {"in_line": round(in_line, 4), "step_cpu_s": round(step_s, 3), "batch_cpu_s": round(batch_s, 3)}
    return waited / total, facts


def batches(stage: Stage, steps: int, epoch: int) -> Iterator[Batch]:
    """Batches of as many epochs as it takes (one where `steps` is large)."""
    left = steps
    while left > 0:
        for batch in stage.loader("train", epoch=epoch, rank=0, world_size=1):
            yield batch
            left -= 1
            if left == 0:
                return
        if steps >= 1000:
            return
        epoch += 1


if __name__ == "__main__":
    main()
