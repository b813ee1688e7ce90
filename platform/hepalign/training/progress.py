"""Progress on stderr: one line every few seconds, one line an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from hepalign.training.schedule import TrainingConfig


class Progress:
    """Tells a person at a terminal how far a training is; silent on all ranks but the first."""

    def __init__(self, name: str, config: TrainingConfig, *, enabled: bool) -> None:
        self.name, self.config, self.enabled = name, config, enabled
        self.told = self.started = time.monotonic()

    def step(self, epoch: int, step: int, loss: float) -> None:
        """After a batch."""
        if self.enabled and time.monotonic() - self.told > self.config.progress_every_s:
            self._say(f"epoch {epoch + 1}/{self.config.epochs}, batch {step}, loss {loss:.4g}")

    def epoch(self, row: Mapping[str, float]) -> None:
        """After an epoch."""
        if self.enabled:
            values = [
                f"{name.removeprefix('train/')} {value:.4g}"
                for name, value in row.items()
                if name == "train/loss" or name.startswith("val/")
            ]
            self._say(f"epoch {int(row['epoch']) + 1}/{self.config.epochs} done, {', '.join(values)}")

    def _say(self, text: str) -> None:
        self.told = time.monotonic()
        sys.stderr.write(f"{self.name}: {text} ({self.told - self.started:.0f} s)\n")
        sys.stderr.flush()


def warn(text: str, *, enabled: bool = True) -> None:
    """One line of warning on stderr."""
    if enabled:
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()
