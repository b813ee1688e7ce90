"""Structured logs: JSON lines with request and job ids, never with what a caller sent."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import structlog

_LIBRARIES = ("uvicorn", "sqlalchemy", "httpx2", "stamina")


def configure(name: str, data_folder: Path, level: str) -> None:
    """Sends this process's log to stderr and to `data_folder/logs/<name>.jsonl` (safe to rotate from outside).

    Args:
        name: the deployment's name, part of every line.
        data_folder: of the settings.
        level: `debug`, `info`, `warning` or `error`.
    """
    (data_folder / "logs").mkdir(parents=True, exist_ok=True)
    root = logging.getLogger("hepalign_serve")
    file = data_folder / "logs" / f"{name.lower()}.jsonl"
    root.handlers = [logging.StreamHandler(sys.stderr), WatchedFileHandler(file)]
    for handler in root.handlers:
        handler.setFormatter(_MessageOnly())
    root.setLevel(level.upper())
    root.propagate = False
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _where_without_what,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class _MessageOnly(logging.Formatter):
    """The JSON line alone: the standard formatter would add the exception's own words."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


def _where_without_what(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception's type and frames: its message may quote a file name or a tag."""
    if event.pop("exc_info", None) or sys.exc_info()[0]:
        kind, _, trace = sys.exc_info()
        event["exception"] = getattr(kind, "__name__", "unknown")
        event["frames"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)[-8:]]
    return event
