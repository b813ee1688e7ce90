"""The reference names every setting of a training, with the default that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hepalign.config import RunConfig, SearchConfig

PAGE = Path(__file__).parents[2] / "docs/reference/training.md"


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = SearchConfig if name == "search" else field.annotation
        if name == "component":
            continue
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings(inner, f"{prefix}{name}.")
        else:
            unset = field.default in (None, PydanticUndefined, "", [])
            yield prefix + name, "–" if unset else str(field.default)


def test_the_reference_is_the_code() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (\S+) \| \S", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == dict(settings(RunConfig))
