"""What Prometheus sees of a training, through Ray's own metrics port: `ray_hepalign_training_…`."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from hepalign.training.world import Report

LABELS = ("run", "stage")
EPOCH = Gauge("hepalign_training_epoch", "Epochs finished", tag_keys=LABELS)
STEPS = Gauge("hepalign_training_steps", "Batches trained on, per rank", tag_keys=LABELS)
LOSS = Gauge("hepalign_training_loss", "Mean of a loss's term over the last epoch", tag_keys=(*LABELS, "term"))
SCORE = Gauge("hepalign_training_validation", "Last value of a validation metric", tag_keys=(*LABELS, "metric"))
REPORTED = Gauge("hepalign_training_reported_at_seconds", "Unix time of the last report", tag_keys=LABELS)
CHECKPOINTS = Counter("hepalign_training_checkpoints", "Checkpoints handed to storage", tag_keys=LABELS)

# Ray drops a gauge that nobody has set for two of its report intervals, 20 s, where an epoch takes minutes: the alert
# on a stalled training would lose sight of it.
SET_AGAIN_S = 4.0


class Watched:
    """One run's metrics, set by its first rank and kept alive as long as its process lives.

    Labels are the run's name and its stage, never a case.
    """

    def __init__(self, run: str, stage: str) -> None:
        self.labels = {"run": run, "stage": stage}
        self._shown: dict[tuple[Gauge, frozenset[tuple[str, str]]], float] = {}
        self._set(REPORTED, time.time())
        threading.Thread(target=self._set_again, name="metrics", daemon=True).start()

    def report(self, told: Report) -> None:
        """After an epoch, or a checkpoint in the middle of one."""
        self._set(REPORTED, time.time())
        if told.checkpoint is not None:
            CHECKPOINTS.inc(1, self.labels)
        if not told.row:
            return
        self._set(EPOCH, told.row["epoch"] + 1)
        self._set(STEPS, told.row["step"])
        for name, value in told.row.items():
            kind, _, term = name.partition("/")
            if kind == "train":
                self._set(LOSS, value, {"term": term})
            elif kind == "val":
                self._set(SCORE, value, {"metric": term})

    def _set(self, gauge: Gauge, value: float, more: Mapping[str, str] | None = None) -> None:
        labels = self.labels | dict(more or {})
        self._shown[gauge, frozenset(labels.items())] = value
        gauge.set(value, labels)

    def _set_again(self) -> None:
        while True:
            time.sleep(SET_AGAIN_S)
            for (gauge, labels), value in list(self._shown.items()):
                gauge.set(value, dict(labels))
