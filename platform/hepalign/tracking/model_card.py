"""The model card: facts of a release filled into a template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hepalign.inference.bundle import RELEASE_FILE, STAGES

TEMPLATE = Path("mlflow/model_card.md")
CARD_FILE = "model_card.md"


def write_model_card(
    folder: Path, trainings: Mapping[str, Mapping[str, Any]], gate: Mapping[str, Any] | None, template: Path = TEMPLATE
) -> None:
    """Fill the template with what the release's files say; without a template there is no card.

    Args:
        trainings: stage to what its training left (`training.json` and its metrics).
        gate: the gate's report, once there is one.
    """
    if not template.is_file():
        return
    facts = {
        "release": json.loads((folder / RELEASE_FILE).read_text()),
        "networks": {stage: json.loads((folder / f"{stage}.json").read_text()) for stage in STAGES},
        "trainings": trainings,
        "gate": gate,
    }
    # Markdown, not HTML: nothing to escape.
    page = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(  # noqa: S701
        template.read_text()
    )
    (folder / CARD_FILE).write_text(page.render(facts))
