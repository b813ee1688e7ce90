"""What one of Ray Train's workers does: build the stage, run the loop, report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
import torch.distributed
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device, prepare_model
from torch import nn

from hepalign.config import RunConfig
from hepalign.distributed.metrics import Watched
from hepalign.distributed.storage import remove_strays
from hepalign.errors import HepalignError
from hepalign.stages.stage import Stage
from hepalign.training.loop import FitResult, fit, seed_everything
from hepalign.training.world import Report, World

if TYPE_CHECKING:
    from hepalign.tracking.runs import RunLog, Unsent

StageFactory = Callable[[RunConfig, torch.device], Stage]


@dataclass(frozen=True)
class Order:
    """What a worker is told.

    Args:
        config: of the run.
        make: makes the stage.
        tracking_uri: where rank 0 sends its rows.
        run_id: MLflow's; None for no tracking.
    """

    config: RunConfig
    make: StageFactory
    tracking_uri: str
    run_id: str | None


@dataclass(frozen=True)
class Ended:
    """What a worker sends back: a result, or an error that no restart would mend; and what MLflow has not got."""

    result: FitResult | None = None
    error: HepalignError | None = None
    unsent: Unsent | None = None


def work(given: dict[str, Order]) -> Ended:
    """One rank's part of a training."""
    order = given["order"]
    config = order.config
    if not config.workers.gpu:
        torch.set_num_threads(max(1, int(config.workers.cpus)))
    seed_everything(config.training.seed)
    with tempfile.TemporaryDirectory(prefix="hepalign-") as folder, ExitStack() as opened:
        log = _log(order)
        world = _world(config, opened, log)
        try:
            stage = _made(order, world)
            _tidy(world.rank)
            ended = Ended(result=fit(stage, config.training, world, Path(folder), resume=True))
        except HepalignError as error:
            # The same data would fail again: end the run instead of letting Ray restart it.
            ended = Ended(error=error)
        # Also waits for uploads under way, which read from the folder that ends here.
        _tidy(world.rank)
        return replace(ended, unsent=None if log is None else log.unsent)


def _made(order: Order, world: World) -> Stage:
    """The stage, once every rank has one."""
    stage, failure = None, None
    try:
        stage = order.make(order.config, world.device)
    except HepalignError as error:
        failure = error
    world.share(None, failure)
    assert stage is not None
    return stage


def _world(config: RunConfig, opened: ExitStack, log: RunLog | None) -> World:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    asynchronous = config.workers.upload == "async"
    upload = CheckpointUploadMode.ASYNC if asynchronous else CheckpointUploadMode.SYNC
    watched = Watched(config.name, config.stage) if rank == 0 else None

    def report(told: Report) -> None:
        checkpoint = None if told.checkpoint is None else ray.train.Checkpoint.from_directory(str(told.checkpoint))
        ray.train.report(
            dict(told.row), checkpoint, checkpoint_upload_mode=upload, delete_local_checkpoint_after_upload=True
        )
        if log is not None:
            log.send(told.row, told.pictures)
        if watched is not None:
            watched.report(told)

    return World(
        rank=rank,
        size=size,
        device=get_device(),
        prepare=lambda net: _prepare(net, size),
        report=report,
        gather=lambda mine: _gather(mine, size),
        checkpoints=lambda: _newest_first(opened),
        interrupted=lambda: ray.train.get_preemption_info() is not None,
    )


def _prepare(net: nn.Module, size: int) -> nn.Module:
    trained = any(parameter.requires_grad for parameter in net.parameters())
    return prepare_model(net, parallel_strategy="ddp" if trained and size > 1 else None)


def _gather(mine: Any, size: int) -> list[Any]:
    if size == 1:
        return [mine]
    found: list[Any] = [None] * size
    torch.distributed.all_gather_object(found, mine)
    return found


def _log(order: Order) -> RunLog | None:
    """Rank 0's line to MLflow."""
    if ray.train.get_context().get_world_rank() != 0 or not order.config.tracking.enabled:
        return None
    # MLflow takes seconds to import: only where it is used.
    from hepalign.tracking.runs import RunLog

    return RunLog(order.tracking_uri, order.run_id, order.config.tracking)


def _tidy(rank: int) -> None:
    """Once nothing is being uploaded, rank 0 removes what lost workers left half copied, or copied and never told."""
    kept = [reported.checkpoint for reported in ray.train.get_all_reported_checkpoints()]
    if rank == 0 and kept:
        remove_strays(kept[0].filesystem, [checkpoint.path for checkpoint in kept])


def _newest_first(opened: ExitStack) -> Iterator[Path]:
    """The run's checkpoints as local folders, fetched one at a time as they are asked for."""
    for reported in reversed(ray.train.get_all_reported_checkpoints()):
        yield Path(opened.enter_context(reported.checkpoint.as_directory()))
