"""A stage of one linear layer on made-up cases: small enough to train in milliseconds, real in every other way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hepalign import config as config_module
from hepalign.errors import BadInputError
from hepalign.nets import checkpoint
from hepalign.stages.stage import Batch, Update

GATED_BATCH = 4


class ToyNetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 3


class ToyLosses(BaseModel):
    model_config = ConfigDict(extra="forbid")
    squared: float = 1.0
    style: float = 120.0


class ToyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: ToyNetConfig = ToyNetConfig()
    losses: ToyLosses = ToyLosses()
    cases: int = 8
    batch_size: int = 2
    noise: float = 0.1
    memory: float = 0.01
    learning_rate: float = 0.05
    optimizer: Literal["sgd", "adam"] = "sgd"
    poisoned_case: str | None = None
    batch_s: float = 0.0
    killed_at: int | None = None
    killed_once: str = ""
    gate: str = ""
    fails: bool = False


class ToyNet(nn.Module):
    def __init__(self, config: ToyNetConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


checkpoint.KINDS.setdefault("toy", (__name__, "ToyNet", "ToyNetConfig"))
# A process that is handed a toy's run knows the stage, as it knows the real ones.
config_module.COMPONENTS.setdefault("toy", (__name__, "ToyConfig"))


class ToyStage:
    """Noise from the global generator in each batch and a buffer in `state`: a resume that forgets one shows."""

    name = "toy"
    selection = ("error", True)

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.net: nn.Module = ToyNet(config.net)
        rates = {"lr": config.learning_rate}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self.net.parameters(), **rates)
            if config.optimizer == "sgd"
            else torch.optim.Adam(self.net.parameters(), **rates)
        )
        self.buffer = torch.zeros(1)
        self.batches = 0
        self.before_batch: Callable[[int], None] = lambda number: None
        self.scripted_scores: list[float] = []

    def nets(self) -> dict[str, nn.Module]:
        return {"toy": self.net}

    def adopt(self, nets: Mapping[str, nn.Module]) -> None:
        self.net = nets["toy"]

    def export(self) -> tuple[nn.Module, BaseModel]:
        return self.net, self.config.net

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"toy": self.optimizer}

    def state(self) -> dict[str, object]:
        return {"buffer": self.buffer.clone()}

    def load_state(self, state: Mapping[str, object]) -> None:
        self.buffer = torch.as_tensor(state["buffer"]).clone()

    def loader(self, split: str, *, epoch: int, rank: int, world_size: int) -> Iterable[Batch]:
        size = self.config.batch_size
        order = np.random.default_rng((epoch, len(split))).permutation(self.config.cases)
        for start in range(rank * size, len(order), size * world_size):
            cases = order[start : start + size]
            x = torch.stack([torch.sin(torch.arange(3.0) + float(case)) for case in cases])
            yield {"x": x, "y": x.sum(1, keepdim=True), "case_id": [f"case-{case}" for case in cases]}

    def begin_epoch(self, epoch: int, total: int) -> None:
        pass

    def updates(self, batch: Batch) -> Iterator[Update]:
        self.batches += 1
        self.before_batch(self.batches)
        time.sleep(self.config.batch_s)
        x, y = torch.as_tensor(batch["x"]), torch.as_tensor(batch["y"])
        noise = self.config.noise * (torch.randn(1) + float(np.random.random()))
        squared = (self.net(x) - y - noise - self.config.memory * self.buffer).square().mean()
        self.buffer = 0.9 * self.buffer + squared.detach()
        case_ids = batch["case_id"]
        if isinstance(case_ids, list) and self.config.poisoned_case in case_ids:
            squared = squared * torch.nan
        yield Update(self.optimizer, self.config.losses.squared * squared, {"squared": squared.detach()})

    def score(self, batch: Batch) -> dict[str, float]:
        if self.scripted_scores:
            # Scripted per validation: the first batch of each takes the next value.
            return {"error": self.scripted_scores[self._validation(batch)]}
        x, y = torch.as_tensor(batch["x"]), torch.as_tensor(batch["y"])
        return {"error": float((self.net(x) - y).abs().mean())}

    def _validation(self, batch: Batch) -> int:
        return (self.batches * self.config.batch_size - 1) // self.config.cases

    def pictures(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        return {"fit": np.zeros((4, 4), np.uint8)}


def build_toy(config: object, device: torch.device) -> ToyStage:
    """As `hepalign.distributed.workers.build_stage`, for a run whose component is a `ToyConfig`."""
    component = getattr(config, "component", None)
    assert isinstance(component, ToyConfig)
    checkpoint.KINDS.setdefault("toy", (__name__, "ToyNet", "ToyNetConfig"))
    if component.fails:
        raise BadInputError("made to fail", code="made_to_fail")
    stage = ToyStage(component)
    if component.gate:
        stage.before_batch = lambda number: _wait_at(Path(component.gate)) if number == GATED_BATCH else None
    if component.killed_at is not None:
        stage.before_batch = lambda number: _kill_once(number == component.killed_at, Path(component.killed_once))
    return stage


def _kill_once(now: bool, mark: Path) -> None:
    """kill -9 of this very process, the first time only."""
    if now and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _wait_at(gate: Path) -> None:
    """Say that the gate was reached, and wait until it is there."""
    gate.with_name("reached").touch()
    while not gate.exists():
        time.sleep(0.1)


def refuse(item: object) -> None:
    """A task that fails as our own code does."""
    raise BadInputError(f"{item} made to fail", code="made_to_fail")
