"""What a training loop needs to know of the processes around it, so that the loop itself never imports Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hepalign.errors import HepalignError

Told = TypeVar("Told")


@dataclass(frozen=True)
class Report:
    """What one rank tells after an epoch, or with a checkpoint in the middle of one.

    Args:
        row: the epoch's numbers (`epoch`, `step`, `train/…`, `val/…`, `lr/…`), the same on every rank; empty in the
            middle of an epoch.
        checkpoint: the folder with this rank's part of a finished checkpoint, or None.
        pictures: images by name, (H, W) or (H, W, 3) uint8; on rank 0 only.
    """

    row: Mapping[str, float]
    checkpoint: Path | None = None
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees it.

    Args:
        rank: this process's number, 0 … size − 1.
        size: how many processes train.
        device: where this process computes.
        prepare: moves a network to the device and, with several processes, wraps it (DDP).
        report: takes a `Report`; every rank calls it equally often.
        gather: gives every rank the list of all ranks' objects, in rank order; a barrier.
        checkpoints: earlier checkpoints' folders, the newest first; None: those in the loop's own folder.
        interrupted: whether this group will be stopped soon; every rank calls it equally often.
    """

    rank: int
    size: int
    device: torch.device
    prepare: Callable[[nn.Module], nn.Module]
    report: Callable[[Report], None]
    gather: Callable[[Any], list[Any]]
    checkpoints: Callable[[], Iterable[Path]] | None = None
    interrupted: Callable[[], bool] = lambda: False

    def share(self, mine: Told, failure: HepalignError | None) -> list[Told]:
        """`gather`, but what one rank failed with is raised on all of them.

        The others would wait for that one until their connection's time limit, and its words would be lost.
        """
        told: list[tuple[Told, HepalignError | None]] = self.gather((mine, failure))
        for _, failed in told:
            if failed is not None:
                raise failed
        return [found for found, _ in told]

    @classmethod
    def local(cls, device: str | torch.device = "cpu", report: Callable[[Report], None] | None = None) -> World:
        """One process without Ray."""
        chosen = torch.device(device)
        return cls(
            rank=0,
            size=1,
            device=chosen,
            prepare=lambda net: net.to(chosen),
            report=report or (lambda told: None),
            gather=lambda mine: [mine],
        )
