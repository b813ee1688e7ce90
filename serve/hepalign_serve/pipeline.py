"""What a replica computes: the same `inference` functions that evaluation calls, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hepalign.cases.probe import check_probe_mask, parse_probe_mask, voxel_mask
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Task:
    """One attempt's input: image files by role (Case names), options, and the folder for its results."""

    images: Mapping[str, Path]
    options: Mapping[str, Any]
    out: Path
    plan_folder: Path | None = None
    previous_folder: Path | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)


class Pipeline(Protocol):
    """What a replica needs to do its work; `HepalignPipeline` is the real one."""

    def load(self, folder: Path) -> Any:
        """A release's bundle, verified and ready."""
        ...

    def plan(self, bundle: Any, task: Task, progress: Progress) -> dict[str, Any]:
        """Writes the plan folder; returns what `plan.json` says."""
        ...

    def guide(self, bundle: Any, task: Task, progress: Progress) -> dict[str, Any]:
        """Writes the guide folder; returns what `result.json` says."""
        ...


class HepalignPipeline:
    """The paper's chain through `hepalign.inference`."""

    def load(self, folder: Path) -> Any:
        """See `Pipeline`."""
        from hepalign.inference.bundle import load_bundle

        return load_bundle(folder)

    def plan(self, bundle: Any, task: Task, progress: Progress) -> dict[str, Any]:
        """See `Pipeline`."""
        from hepalign.inference.planner import plan

        progress("reading", 0.05)
        pmr, pct = read_volume(task.images["pmr"]), read_volume(task.images["pct"])
        labels = {role: read_volume(path) for role, path in task.images.items() if role.endswith(("_liver", "_tumour"))}
        progress("planning", 0.1)
        made = plan(bundle, pmr, pct, labels=labels, **task.options)
        progress("saving", 0.95)
        made.save(task.out)
        return _read_json(task.out / "plan.json")

    def guide(self, bundle: Any, task: Task, progress: Progress) -> dict[str, Any]:
        """See `Pipeline`."""
        from hepalign.inference.guide import guide
        from hepalign.inference.planner import load_plan

        assert task.plan_folder is not None
        progress("reading", 0.05)
        warnings = list(task.warnings)
        ict = read_volume(task.images["ict"], report=warnings)
        mask = read_mask(task.images["ict_probe_mask"], ict, warnings)
        progress("guiding", 0.1)
        made = guide(bundle, load_plan(task.plan_folder), ict, mask, **task.options)
        progress("saving", 0.95)
        made.save(task.out)
        return _read_json(task.out / "result.json")


def read_mask(path: Path, ict: Volume, report: list[str]) -> Volume:
    """The probe mask of a file on the iCT's grid, checked: voxels, or a JSON box or polygon."""
    if path.suffix == ".json":
        mask = parse_probe_mask(path.read_bytes(), ict.geometry)
    else:
        mask = voxel_mask(read_volume(path), ict.geometry, report)
    check_probe_mask(mask, ict)
    return mask


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
