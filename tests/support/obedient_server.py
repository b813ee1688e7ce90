"""The server process of `served.boot`: the real application whose pipeline can be told to fail."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hepalign.inference.pair import Effort, Levels
from hepalign_serve.pipeline import HepalignPipeline
from hepalign_serve.run import serving
from hepalign_serve.settings import Settings

HELD = "held"


class ObedientPipeline(HepalignPipeline):
    """The real chain that first does what a file of the control folder says: sleep, die, run out of memory."""

    def __init__(self, control: Path) -> None:
        super().__init__()
        self._control = control

    def plan(self, bundle: Any, task: Any, synthesise: Any, progress: Any) -> dict[str, Any]:
        self._obey("plan")
        return super().plan(bundle, task, synthesise, progress)

    def guide(self, bundle: Any, task: Any, inpaint: Any, progress: Any) -> dict[str, Any]:
        order = self._obey("guide")
        if order not in ("network fails", "refinement fails too"):
            return super().guide(bundle, task, inpaint, progress)
        refine = Levels.refine
        try:
            if order == "refinement fails too":
                Levels.refine = not_finite  # type: ignore[method-assign]
            failing = replace(bundle, networks={**bundle.networks, "registration": Failing()})
            return super().guide(failing, task, inpaint, progress)
        finally:
            Levels.refine = refine  # type: ignore[method-assign]

    def inpaint(self, bundle: Any, *volumes: Any) -> Any:
        self._obey("inpaint")
        return super().inpaint(bundle, *volumes)

    def _obey(self, step: str) -> str:
        order = self._control / step
        if not order.exists():
            return ""
        told = json.loads(order.read_text(encoding="utf-8"))
        if told["times"] <= 1:
            order.unlink()
        else:
            order.write_text(json.dumps(told | {"times": told["times"] - 1}), encoding="utf-8")
        if told["do"] == "sleep":
            time.sleep(told["seconds"])
        elif told["do"] == "hold":
            while (self._control / HELD).exists():
                time.sleep(0.05)
        elif told["do"] == "die":
            os._exit(1)
        elif told["do"] == "memory":
            raise MemoryError
        elif told["do"] == "full":
            raise OSError(28, "No space left on device")
        elif told["do"] == "bug":
            raise ZeroDivisionError("canary-in-a-bug")
        return str(told["do"])


class Failing(torch.nn.Module):
    """A registration network whose velocities are not finite."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 3, *inputs.shape[2:]), torch.nan)


def not_finite(self: Levels, residual: torch.Tensor, effort: Effort, deadline: float | None = None) -> torch.Tensor:
    return residual * torch.nan


def main(folder: Path) -> None:
    told: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    defaults: dict[str, Any] = {
        "port": 0,
        "data_folder": folder / "data",
        "release": str(folder / "release"),
        "unjudged_release": True,
        "release_poll_s": 0.5,
        "housekeeping_s": 1,
        "ray_cpus": 4,
        "plan": {"deadline_s": 60, "attempts": 3, "threads": 1},
        "guide": {"deadline_s": 30, "attempts": 2, "threads": 1},
        "synthesis": {"threads": 1},
        "inpainting": {"threads": 1},
        "shadow": {"threads": 1},
        "limits": {
            "upload_bytes": 8 * 2**20,
            "stall_s": 1.5,
            "requests_per_minute": 100_000,
            "queued_jobs": 6,
            "site_queued_jobs": 4,
        },
    }
    settings = Settings.model_validate(defaults | told)
    with serving(settings, pipeline=ObedientPipeline(folder / "control")) as server:
        started = {"url": server.url, "token": server.token, "settings": server.settings.model_dump(mode="json")}
        started["ray_folder"] = str(server.ray_folder)
        print(json.dumps(started), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
