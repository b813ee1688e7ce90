"""The one training loop: any stage, any number of processes, resumable to the very sample."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hepalign.errors import BadInputError, HepalignError, WorkFailedError
from hepalign.nets.checkpoint import save_weights
from hepalign.stages.stage import Batch, Stage
from hepalign.training import checkpoint as files
from hepalign.training.progress import Progress, warn
from hepalign.training.recompute import recompute_activations
from hepalign.training.schedule import TrainingConfig, saves, validates, warmup_factor
from hepalign.training.world import Report, World

# Asking every rank whether a node is about to be taken costs a barrier; notices come tens of seconds ahead.
INTERRUPT_CHECK_STEPS = 5
# A row's key for the stage's selection metric, turned so that smaller is better.
SCORE = "score"


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Args:
        folder: the loop's folder; `best/` in it holds the best weights (rank 0).
        epochs: the epochs done.
        best_epoch: the epoch (from 0) of the best validation.
        best: that epoch's row.
        history: one row per epoch.
    """

    folder: Path
    epochs: int
    best_epoch: int
    best: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]


def fit(stage: Stage, config: TrainingConfig, world: World, folder: Path, resume: bool = False) -> FitResult:
    """Train `stage` and keep the weights of its best validation in `folder/best`.

    Checkpoints go to `folder/checkpoints`, the last `keep_checkpoints` of them. With `resume` the newest sound one
    is continued, and the losses and weights are those of a run that was never interrupted (bitwise, on a CPU and
    with as many ranks).

    Raises:
        WorkFailedError: `loss_not_finite`, naming the cases of the batch; `no_batches` when the loader is empty;
            `checkpoint_corrupt` when there are checkpoints and none of them is sound.
    """
    loop = _Loop(stage, config, world, folder)
    if resume:
        loop.restore()
    return loop.run()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass
class _Position:
    """Where a run stands; `sums` and `batches` are this rank's own, the rest is common."""

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    elapsed_s: float = 0.0
    best_epoch: int = -1
    best: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    batches: int = 0


class _Loop:
    def __init__(self, stage: Stage, config: TrainingConfig, world: World, folder: Path) -> None:
        self.stage, self.config, self.world, self.folder = stage, config, world, folder
        self.at = _Position()
        self.bare = stage.nets()
        if config.recompute_activations:
            for net in self.bare.values():
                recompute_activations(net)
        self.wrapped = {name: world.prepare(net) for name, net in self.bare.items()}
        stage.adopt(self.wrapped)
        self.optimizers = stage.optimizers()
        self.progress = Progress(stage.name, config, enabled=world.rank == 0)
        self.started = time.monotonic()
        # Networks are initialised alike on every rank; from here on each rank draws its own numbers.
        seed_everything(config.seed * 1_000_003 + world.rank)

    def run(self) -> FitResult:
        while self.at.epoch < self.config.epochs and not self._out_of_time():
            row = self._train_epoch()
            pictures: dict[str, Any] = {}
            if validates(self.config, self.at.epoch):
                scores, pictures = self._validate()
                row |= scores | self._score(scores)
            self.at.history.append(row)
            self._keep_if_best(row)
            self.progress.epoch(row)
            self.at.epoch, self.at.step, self.at.batches, self.at.sums = self.at.epoch + 1, 0, 0, defaultdict(float)
            self._report(Report(row, self._save(), pictures))
        if not self.at.history:
            raise WorkFailedError("no epoch was trained: give training.budget_s more time", code="no_batches")
        at = self.at
        return FitResult(self.folder, at.epoch, at.best_epoch, at.best, tuple(at.history))

    def _train_epoch(self) -> dict[str, float]:
        config, at = self.config, self.at
        for net in self.wrapped.values():
            net.train()
        self.stage.begin_epoch(at.epoch, config.epochs)
        rates = {name: [group["lr"] for group in opt.param_groups] for name, opt in self.optimizers.items()}
        # Frozen parts set by the stage's own train() calls or begin_epoch stay as the stage left them.
        for number, batch in self._batches():
            self._set_rates(rates, warmup_factor(config, at.total_steps))
            self._step(batch, micro=number % config.accumulate)
            self._set_rates(rates, 1.0)
            at.step, at.total_steps, at.batches = number + 1, at.total_steps + 1, at.batches + 1
            self.progress.step(at.epoch, at.step, at.sums["loss"] / at.batches)
            if saves(config, at.step) or self._interrupted():
                self._report(Report({}, self._save()))
        if at.step < config.accumulate:
            raise WorkFailedError(
                f"the training split gives {at.step} batches to a rank, and {config.accumulate} make one step: "
                "check data.cohorts, data.batch_size and training.accumulate",
                code="no_batches",
            )
        row = {"epoch": float(at.epoch), "step": float(at.total_steps)}
        row |= {f"lr/{name}": float(values[0]) for name, values in rates.items()}
        return row | {f"train/{term}": mean for term, mean in self._mean(at.sums, at.batches).items()}

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """The epoch's batches from where the run stands, as long as every rank has one."""
        batches = self._own_batches()
        for number in itertools.count(self.at.step):
            if number == self.config.steps_per_epoch:
                return
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except HepalignError as error:
                failure = error
            there = self.world.share(batch is not None, failure)
            if batch is None or not all(there):
                return
            yield number, batch

    def _own_batches(self) -> Iterator[Batch]:
        """This rank's batches from where the run stands."""
        at, world = self.at, self.world
        own = files.random_state() if at.step else None
        batches = iter(self.stage.loader("train", epoch=at.epoch, rank=world.rank, world_size=world.size))
        for _ in itertools.islice(batches, at.step):
            pass
        if own is not None:
            files.restore_random_state(own)
        yield from batches

    def _step(self, batch: Batch, micro: int) -> None:
        """One batch: each update's loss is computed after the step before it, all within the rank's own state."""
        not_finite: list[str] = []
        last = micro == self.config.accumulate - 1
        with ExitStack() as held:
            if not last:
                self._keep_gradients_here(held)
            for update in self.stage.updates(batch):
                terms = {"loss": update.loss.detach(), **update.terms}
                if micro == 0:
                    update.optimizer.zero_grad(set_to_none=True)
                # torch leaves Tensor.backward without annotations.
                (update.loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
                if last:
                    terms[f"grad_norm/{self._name(update.optimizer)}"] = self._clip(update.optimizer)
                    update.optimizer.step()
                values = {name: float(value) for name, value in terms.items()}
                not_finite += [name for name, value in values.items() if not math.isfinite(value)]
                for name, value in values.items():
                    self.at.sums[name] += value
        self._guard(batch, not_finite)

    def _keep_gradients_here(self, held: ExitStack) -> None:
        """Until the last batch of a step there is no need to average gradients over the ranks."""
        for net in self.wrapped.values():
            if isinstance(net, DistributedDataParallel):
                held.enter_context(net.no_sync())

    def _clip(self, optimizer: Optimizer) -> torch.Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return nn.utils.clip_grad_norm_(parameters, limit)

    def _guard(self, batch: Batch, not_finite: list[str]) -> None:
        """Stop every rank when a loss, a term or a gradient is not a number; no checkpoint has seen it."""
        cases = cast("list[str]", batch.get("case_id", ["?"]))
        found = self.world.gather((not_finite, cases)) if self.world.size > 1 else [(not_finite, cases)]
        terms = sorted({term for names, _ in found for term in names})
        if terms:
            named = ", ".join(sorted({case for names, ids in found if names for case in ids}))
            raise WorkFailedError(
                f"{self.stage.name}: {', '.join(terms)} not finite at epoch {self.at.epoch}, batch {self.at.step}, "
                f"cases {named}: look at these cases (`hepalign data check`), or lower the learning rate; the last "
                "good checkpoint is kept",
                code="loss_not_finite",
            )

    @torch.no_grad()
    def _validate(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Means over all ranks' validation batches, and pictures of the first; the random state stays untouched."""
        own = files.random_state()
        seed_everything(self.config.seed)
        # Without DDP's wrapper: ranks may hold different numbers of batches here.
        self.stage.adopt(self.bare)
        for net in self.bare.values():
            net.eval()
        sums: dict[str, float] = defaultdict(float)
        pictures: dict[str, Any] = {}
        count, failure = 0, None
        try:
            for batch in self.stage.loader("val", epoch=0, rank=self.world.rank, world_size=self.world.size):
                for name, value in self.stage.score(batch).items():
                    sums[name] += float(value)
                if count == 0 and self.world.rank == 0:
                    pictures = dict(self.stage.pictures(batch))
                count += 1
        except HepalignError as error:
            failure = error
        self.stage.adopt(self.wrapped)
        files.restore_random_state(own)
        return {f"val/{name}": mean for name, mean in self._mean(sums, count, failure).items()}, pictures

    def _mean(self, sums: Mapping[str, float], count: int, failure: HepalignError | None = None) -> dict[str, float]:
        parts = self.world.share((dict(sums), count), failure)
        total = sum(number for _, number in parts)
        names = list(dict.fromkeys(name for part, _ in parts for name in part))
        return {name: sum(part.get(name, 0.0) for part, _ in parts) / total for name in names}

    def _score(self, scores: Mapping[str, float]) -> dict[str, float]:
        metric, smaller_is_better = self.stage.selection
        value = scores.get(f"val/{metric}", math.nan)
        return {SCORE: value if smaller_is_better else -value}

    def _keep_if_best(self, row: Mapping[str, float]) -> None:
        value, before = (kept.get(SCORE, math.inf) for kept in (row, self.at.best))
        # Without any validation the newest weights count as the best; a score that is no number never does.
        if self.at.best and math.isfinite(before) and not value < before:
            return
        self.at.best_epoch, self.at.best = self.at.epoch, dict(row)
        if self.world.rank == 0:
            net, config = self.stage.export()
            save_weights(net, config, self.folder / files.BEST, self.stage.name)

    def _set_rates(self, rates: Mapping[str, list[float]], factor: float) -> None:
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                group["lr"] = rate * factor

    def _interrupted(self) -> bool:
        whole_update = self.at.step % self.config.accumulate == 0
        return whole_update and self.at.step % INTERRUPT_CHECK_STEPS == 0 and self.world.interrupted()

    def _out_of_time(self) -> bool:
        if self.config.budget_s is None:
            return False
        spent = self.at.elapsed_s + time.monotonic() - self.started
        return bool(self.world.gather(spent > self.config.budget_s)[0])

    def _name(self, optimizer: Optimizer) -> str:
        return next(name for name, mine in self.optimizers.items() if mine is optimizer)

    def _save(self) -> Path:
        at, world = self.at, self.world
        own = {
            "random": files.random_state(),
            "stage": self.stage.state(),
            "sums": dict(at.sums),
            "batches": at.batches,
        }
        common = {
            "world_size": world.size,
            "nets": {name: net.state_dict() for name, net in self.bare.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "position": {
                "epoch": at.epoch,
                "step": at.step,
                "total_steps": at.total_steps,
                "elapsed_s": at.elapsed_s + time.monotonic() - self.started,
                "best_epoch": at.best_epoch,
                "best": at.best,
                "history": at.history,
            },
        }
        lead = world.rank == 0
        return files.write_checkpoint(
            self.folder / "checkpoints",
            f"epoch-{at.epoch:04d}-batch-{at.step:06d}",
            rank=world.rank,
            own=own,
            common=common if lead else None,
            best=self.folder / files.BEST if lead else None,
        )

    def _report(self, report: Report) -> None:
        self.world.report(report)
        if self.world.checkpoints is None:
            files.prune_checkpoints(self.folder / "checkpoints", self.config.keep_checkpoints)

    def restore(self) -> None:
        """Go on from the newest checkpoint that is sound on every rank; a damaged one is named and passed over."""
        stored = self.world.checkpoints
        candidates = list(files.stored_checkpoints(self.folder / "checkpoints") if stored is None else stored())
        for path in candidates:
            try:
                found, problem = files.read_checkpoint(path, self.world.rank), ""
            except BadInputError as error:
                found, problem = None, error.message
            problems = [told for told in self.world.gather(problem) if told]
            if found is not None and not problems:
                self._load(path, *found)
                return
            warn(f"{problems[0]}; going on from the one before it", enabled=self.world.rank == 0)
        if candidates:
            raise WorkFailedError(
                "none of the run's checkpoints is sound: start anew without --resume", code="checkpoint_corrupt"
            )

    def _load(self, path: Path, common: dict[str, Any], own: dict[str, Any] | None) -> None:
        for name, net in self.bare.items():
            net.load_state_dict(common["nets"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(common["optimizers"][name])
        at = self.at = _Position(**common["position"])
        if own is not None and common["world_size"] == self.world.size:
            at.sums, at.batches = defaultdict(float, own["sums"]), own["batches"]
            self.stage.load_state(own["stage"])
            files.restore_random_state(own["random"])
        elif at.step:
            # Another number of ranks deals the samples differently: the epoch starts over.
            at.total_steps, at.step = at.total_steps - at.step, 0
        if (path / files.BEST).is_dir():
            shutil.copytree(path / files.BEST, self.folder / files.BEST, dirs_exist_ok=True)
