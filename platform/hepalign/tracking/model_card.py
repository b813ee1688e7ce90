"""The model card: facts of a release filled into a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hepalign.inference.bundle import RELEASE_FILE, STAGES
from hepalign.tracking.release_folder import GATE_FILE

TEMPLATE = Path("mlflow/model_card.md")
CARD_FILE = "model_card.md"
TRAININGS_FILE = "trainings.json"  # stage to what its training left: its training.json and metrics


def write_model_card(folder: Path, template: Path = TEMPLATE) -> None:
    """Fill the template with what a release folder's files say; without a template there is no card."""
    if not template.is_file():
        return
    facts = {
        "release": json.loads((folder / RELEASE_FILE).read_text(encoding="utf-8")),
        "networks": {stage: json.loads((folder / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES},
        "trainings": _json(folder / TRAININGS_FILE),
        "gate": _json(folder / GATE_FILE),
    }
    # Markdown, not HTML: nothing to escape.
    page = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(  # noqa: S701
        template.read_text(encoding="utf-8")
    )
    (folder / CARD_FILE).write_text(page.render(facts), encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
