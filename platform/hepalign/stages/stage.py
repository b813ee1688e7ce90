"""The contract between a training stage and the one loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim import Optimizer

from hepalign.cases.case import Split

# A batch is a dict of tensors (B first) plus "case_id": list[str], so that a fault can name its cases.
Batch = dict[str, object]


@dataclass(frozen=True)
class Update:
    """One optimiser step: the loop zeroes `optimizer`, backpropagates `loss`, clips, steps and logs `terms`.

    `terms` are the loss's named parts, detached, unweighted; the loop logs them beside the weighted `loss`.
    """

    optimizer: Optimizer
    loss: Tensor
    terms: Mapping[str, Tensor]


class Stage(Protocol):
    """A stage owns networks, optimisers and data; the loop owns time, steps, checkpoints and logs.

    The loop calls `prepare` (DDP) on each of `nets()` and hands the wrapped modules back through `adopt`.
    """

    name: str
    # the validation metric that selects a checkpoint, and whether smaller is better; it never depends on loss weights
    selection: tuple[str, bool]

    def nets(self) -> dict[str, nn.Module]:
        """The networks by name; these names are the checkpoint's."""
        ...

    def adopt(self, nets: Mapping[str, nn.Module]) -> None:
        """Use these (wrapped, moved) modules from now on."""
        ...

    def export(self) -> tuple[nn.Module, BaseModel]:
        """The network to release and its config, in the form `nets.checkpoint.save_weights` takes them."""
        ...

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimisers by name, over the networks' parameters; they are checkpointed."""
        ...

    def state(self) -> dict[str, object]:
        """Anything else a sample-exact resume needs (image buffers, phase); tensors and JSON values."""
        ...

    def load_state(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave."""
        ...

    def loader(self, split: Split, *, epoch: int, rank: int, world_size: int) -> Iterable[Batch]:
        """The batches of one epoch for one rank, deterministic per (seed, epoch, rank)."""
        ...

    def begin_epoch(self, epoch: int, total: int) -> None:
        """Set learning rates and phases for this epoch."""
        ...

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The optimiser steps of one batch; each loss is computed only after the step before it was taken."""
        ...

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, float]:
        """Validation metrics of one batch; means over batches are logged as `val/…`."""
        ...

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """Images worth looking at, (H, W) or (H, W, 3) uint8 by name."""
        ...
