"""A training step under Ray Train next to the bare loop, and two workers next to one.

Usage: python benchmarks/ray_step.py [--stage registration] [--steps 24] [--rounds 3] [--size 64]
The real stage on a phantom cohort, one thread a worker, wall seconds from one step's begin to the next's (loading,
forward, backward, optimiser; under Ray also gradient exchange, progress, the checks for lost nodes), the first steps
left out; a round's figure is the median of its steps. Bare: the same stage in a plain for loop. Throughput: steps of
all workers a second; two bare loops side by side, which exchange nothing, say how much of it the machine itself has
for two. In turns on a quiet machine with at least two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from hepalign.cases.sources.generate import phantom_cohort
from hepalign.config import RunConfig, load_config
from hepalign.distributed.cluster import ray_session
from hepalign.distributed.workers import build_stage, train
from hepalign.stages.stage import Batch, Stage, Update
from hepalign.training.loop import seed_everything
from timing import ratio

# Preparing the cases and warming the caches.
UNCOUNTED = 8


class Stopwatch:
    """A stage that writes down when each of its steps begins."""

    def __init__(self, stage: Stage, stamps: Path) -> None:
        self._stage, self._stamps = stage, stamps

    def __getattr__(self, name: str) -> object:
        return getattr(self._stage, name)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The stage's own."""
        with self._stamps.open("a", encoding="utf-8") as file:
            file.write(f"{time.perf_counter()}\n")
        yield from self._stage.updates(batch)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="registration", choices=["synthesis", "inpainting", "registration"])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # four steps a case, three cases in four to train on: one epoch holds every worker's steps
        cases = max(4, words.steps)
        phantom_cohort(folder / "cohort", cases=cases, seed=0, shape=(words.size,) * 3, spacing_mm=320 / words.size)
        seconds: dict[str, list[float]] = {"bare": [], "one worker": [], "two workers": [], "two bare loops": []}
        with ray_session(num_cpus=2):
            for turn in range(words.rounds):
                for workers, way in enumerate(("bare", "one worker", "two workers")):
                    stamps = folder / f"{workers}-{turn}"
                    config = configured(words.stage, folder, f"run-{workers}-{turn}", workers, words.steps)
                    if workers:
                        train(config, build=lambda config, device, stamps=stamps: Stopwatch(  # type: ignore[arg-type]
                            build_stage(config, device), stamps))  # fmt: skip
                    else:
                        bare(config, stamps)
                    seconds[way].append(median(steps(stamps, workers)))
                seconds["two bare loops"].append(beside(words.stage, folder, turn, words.steps))
    ratio(
        f"Ray Train step over the bare loop's, one worker, {words.stage}", seconds, "one worker", "bare", at_most=1.03
    )
    both = {"one": seconds["one worker"], "two, per step": [second / 2 for second in seconds["two workers"]]}
    ratio(f"throughput of two workers over one's, {words.stage}", both, "one", "two, per step", at_least=1.8)
    most = {"one": seconds["bare"], "two, per step": [second / 2 for second in seconds["two bare loops"]]}
    ratio(f"throughput of two bare loops side by side over one's, {words.stage}", most, "one", "two, per step")


def configured(stage: str, folder: Path, name: str, workers: int, steps: int) -> RunConfig:
    """One epoch without end: validation and checkpoint come after the last counted step."""
    return load_config(
        stage, {},
        [f"data.cohorts=[{folder / 'cohort'}]", f"out={folder}", f"name={name}", f"workers.count={workers}",
         "training.epochs=1", f"training.steps_per_epoch={steps}", "data.workers=0"],
    )  # fmt: skip


def bare(config: RunConfig, stamps: Path) -> None:
    """What one would write without a platform."""
    seed_everything(config.training.seed)
    stage = Stopwatch(build_stage(config, torch.device("cpu")), stamps)
    stage.begin_epoch(0, 1)  # type: ignore[operator]
    left, epoch = config.training.steps_per_epoch or 0, 0
    while left:
        for batch in stage.loader("train", epoch=epoch, rank=0, world_size=1):  # type: ignore[operator]
            for update in stage.updates(batch):
                update.optimizer.zero_grad()
                update.loss.backward()
                update.optimizer.step()
            left -= 1
            if not left:
                return
        epoch += 1


def beside(stage: str, folder: Path, turn: int, count: int) -> float:
    """Seconds of a step where two processes run the bare loop at once."""
    configs = [configured(stage, folder, f"beside-{n}-{turn}", 0, count) for n in range(2)]
    stamps = [folder / f"beside-{n}-{turn}" for n in range(2)]
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(bare, configs, stamps))
    return median(second for path in stamps for second in steps(path, 0))


def steps(stamps: Path, workers: int) -> list[float]:
    """Seconds of each counted step of all workers of a run."""
    marks = [float(line) for line in stamps.read_text(encoding="utf-8").splitlines()]
    each = max(workers, 1)
    # two workers write in turns and in step with each other
    mine = sorted(marks)[::each]
    found = [after - before for before, after in pairwise(mine)]
    return found[UNCOUNTED:]


if __name__ == "__main__":
    main()
