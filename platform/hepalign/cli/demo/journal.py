"""Which steps of the demo are done, what they found and how long they took."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Keeps one JSON file a step; a step that has one is not done again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether the step is done."""
        return (self.folder / f"{name}.json").exists()

    def step(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Do `work` unless an earlier run finished it; returns what it found, with its `seconds`."""
        path = self.folder / f"{name}.json"
        if path.exists():
            print(f"== {name}: done before", file=sys.stderr, flush=True)
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return known
        print(f"== {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        found = {**work(), "seconds": round(time.monotonic() - started, 1)}
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
        partial.replace(path)
        print(f"== {name}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
        return found

    def seconds(self) -> dict[str, float]:
        """Seconds by finished step."""
        return {
            p.stem: json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in sorted(self.folder.glob("*.json"))
        }
