"""One registration by a peer, as files between two processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepalign.evaluation.baselines.problem import Modality
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3
from hepalign.transform.displacement import DisplacementField

TASK, FIELDS, FACTS, COMPLAINT = "task.npz", "fields.npz", "facts.json", "complaint.txt"


@dataclass(frozen=True, eq=False)
class Task:
    """What a peer's own process is asked to do.

    Args:
        engine: `module.function` among the baselines, from a Problem to a field.
        moving, fixed: images as they are in the case.
        valid: True where the fixed image may be believed.
        modalities: of moving and fixed.
        threads: pinned for every library of the process.
        seed: for the peers that sample at random.
        both_ways: register fixed onto moving as well, for the inverse consistency; not in the time.
    """

    engine: str
    moving: Volume
    fixed: Volume
    valid: Mask3
    modalities: tuple[Modality, Modality]
    threads: int
    seed: int
    both_ways: bool = False


@dataclass(frozen=True, eq=False)
class Registered:
    """What came back.

    Args:
        field: on the fixed image's grid.
        steps: seconds by step; starting a process, importing and passing files are not among them.
        peak_memory_mb: the most memory that the process held.
        backward: the field of the images exchanged, on the moving image's grid, where it was asked for.
    """

    field: DisplacementField
    steps: Mapping[str, float]
    peak_memory_mb: float
    backward: DisplacementField | None = None

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.steps.values())


def write_task(task: Task, folder: Path) -> None:
    """The task's files in a folder of its own."""
    words = {
        "engine": task.engine, "modalities": task.modalities, "threads": task.threads, "seed": task.seed,
        "both_ways": task.both_ways,
    }  # fmt: skip
    np.savez(
        folder / TASK, moving=task.moving.data, moving_affine=task.moving.geometry.affine, fixed=task.fixed.data,
        fixed_affine=task.fixed.geometry.affine, valid=task.valid, words=json.dumps(words),
    )  # fmt: skip


def read_task(folder: Path) -> Task:
    """What `write_task` wrote."""
    with np.load(folder / TASK) as stored:
        words = json.loads(str(stored["words"]))
        images = [
            Volume(data, Geometry(data.shape, stored[f"{name}_affine"]))
            for name in ("moving", "fixed")
            if (data := stored[name]) is not None
        ]
        valid = stored["valid"]
    modalities = (words["modalities"][0], words["modalities"][1])
    return Task(
        words["engine"], images[0], images[1], valid, modalities, words["threads"], words["seed"], words["both_ways"]
    )


def write_result(result: Registered, folder: Path) -> None:
    """The fields and their facts; the facts come last and mean that all is there."""
    arrays: dict[str, Any] = {}
    for name, field in (("forward", result.field), ("backward", result.backward)):
        if field is not None:
            arrays |= {name: field.vectors, f"{name}_affine": field.geometry.affine, f"{name}_linear": field.linear}
    np.savez(folder / FIELDS, **arrays)
    facts = {"steps": dict(result.steps), "peak_memory_mb": result.peak_memory_mb}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def read_result(folder: Path) -> Registered:
    """What `write_result` wrote."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    with np.load(folder / FIELDS) as stored:
        fields = [
            DisplacementField(
                stored[name], Geometry(stored[name].shape[:3], stored[f"{name}_affine"]), stored[f"{name}_linear"]
            )
            for name in ("forward", "backward")
            if name in stored
        ]
    return Registered(fields[0], facts["steps"], facts["peak_memory_mb"], fields[1] if len(fields) > 1 else None)
