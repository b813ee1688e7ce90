"""What replicas compute: the same `inference` functions that evaluation calls, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hepalign.cases.probe import read_probe_mask
from hepalign.image.intensity import coarse_body_mask
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle, load_bundle
from hepalign.inference.guide import guide
from hepalign.inference.inpaint import Inpainted, inpaint
from hepalign.inference.planner import Plan, load_plan, plan
from hepalign.inference.result import load_previous
from hepalign.inference.result_writer import ResultWriter
from hepalign.inference.synthesise import synthesise
from hepalign_serve.task import Task

Progress = Callable[[str, float], None]
# A step of the chain on its own replica: the bundle it gets is the caller's, which it does not send.
Step = Callable[..., Any]
KEPT_PLANS = 4


class Pipeline(Protocol):
    """What a replica needs to do its work; `HepalignPipeline` is the real one, tests bring others."""

    def load(self, folder: Path) -> Any:
        """A release's bundle, verified and ready."""
        ...

    def synthesise(self, bundle: Any, *volumes: Any) -> Any:
        """The synthesis network's step."""
        ...

    def inpaint(self, bundle: Any, *volumes: Any) -> Any:
        """The inpainting network's step."""
        ...

    def plan(self, bundle: Any, task: Task, synthesise: Step, progress: Progress) -> dict[str, Any]:
        """Writes the plan folder; returns what `plan.json` says."""
        ...

    def guide(self, bundle: Any, task: Task, inpaint: Step, progress: Progress) -> dict[str, Any]:
        """Writes the guide folder; returns what `result.json` says."""
        ...

    def preload(self, plan_folder: Path) -> None:
        """Reads a plan that a guide will need."""
        ...


class HepalignPipeline:
    """The paper's chain through `hepalign.inference`."""

    def __init__(self) -> None:
        self._plans: dict[Path, Plan] = {}

    def load(self, folder: Path) -> Bundle:
        """See `Pipeline`."""
        return load_bundle(folder)

    def synthesise(self, bundle: Bundle, *volumes: Any) -> Volume:
        """See `Pipeline`."""
        return synthesise(bundle, *volumes)

    def inpaint(self, bundle: Bundle, *volumes: Any) -> Inpainted:
        """See `Pipeline`."""
        return inpaint(bundle, *volumes)

    def plan(self, bundle: Bundle, task: Task, synthesise: Step, progress: Progress) -> dict[str, Any]:
        """See `Pipeline`."""
        volumes = {name: read_volume(path) for name, path in task.images.items()}
        pmr, pct = volumes.pop("pmr"), volumes.pop("pct")
        made = plan(bundle, pmr, pct, labels=volumes, synthesise=synthesise, progress=progress, **task.options)
        made.save(task.out)
        return _read_json(task.out / "plan.json")

    def guide(self, bundle: Bundle, task: Task, inpaint: Step, progress: Progress) -> dict[str, Any]:
        """See `Pipeline`."""
        assert task.plan_folder is not None
        warnings: list[str] = []
        ict = read_volume(task.images["ict"], report=warnings)
        mask = read_probe_mask(task.images["ict_probe_mask"], ict.geometry, coarse_body_mask(ict), report=warnings)
        labels = {name: read_volume(path) for name, path in task.images.items() if name.endswith(("_liver", "_tumour"))}
        ablation = read_volume(task.images["ict_ablation"]) if "ict_ablation" in task.images else None
        planned = self._plan(task.plan_folder)
        previous = load_previous(task.previous_folder, planned, report=warnings) if task.previous_folder else None
        with ResultWriter(task.out) as writer:
            made = guide(
                bundle, planned, ict, mask, labels=labels, ablation=ablation, previous=previous,
                inpaint=inpaint, progress=progress, keep=writer.keep, **task.options,
            )  # fmt: skip
            writer.finish(made)
        return _with_warnings(task.out / "result.json", warnings)

    def preload(self, plan_folder: Path) -> None:
        """See `Pipeline`."""
        self._plan(plan_folder)

    def _plan(self, folder: Path) -> Plan:
        if folder not in self._plans:
            self._plans[folder] = load_plan(folder)
            while len(self._plans) > KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
        return self._plans[folder]


def _with_warnings(path: Path, warnings: list[str]) -> dict[str, Any]:
    content = _read_json(path)
    if warnings:
        content["warnings"] = [*content.get("warnings", []), *warnings]
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
