"""What Prometheus sees of a training, through Ray's own metrics port: `ray_hepalign_training_…`."""

from __future__ import annotations

import time

from ray.util.metrics import Counter, Gauge

from hepalign.training.world import Report

LABELS = ("run", "stage")
EPOCH = Gauge("hepalign_training_epoch", "Epochs finished", tag_keys=LABELS)
STEPS = Gauge("hepalign_training_steps", "Batches trained on, per rank", tag_keys=LABELS)
LOSS = Gauge("hepalign_training_loss", "Mean of a loss's term over the last epoch", tag_keys=(*LABELS, "term"))
SCORE = Gauge("hepalign_training_validation", "Last value of a validation metric", tag_keys=(*LABELS, "metric"))
REPORTED = Gauge("hepalign_training_reported_at_seconds", "Unix time of the last report", tag_keys=LABELS)
CHECKPOINTS = Counter("hepalign_training_checkpoints", "Checkpoints handed to storage", tag_keys=LABELS)


class Watched:
    """One run's metrics, set by its first rank. Labels are the run's name and its stage, never a case."""

    def __init__(self, run: str, stage: str) -> None:
        self.labels = {"run": run, "stage": stage}
        REPORTED.set(time.time(), self.labels)

    def report(self, told: Report) -> None:
        """After an epoch, or a checkpoint in the middle of one."""
        REPORTED.set(time.time(), self.labels)
        if told.checkpoint is not None:
            CHECKPOINTS.inc(1, self.labels)
        if not told.row:
            return
        EPOCH.set(told.row["epoch"] + 1, self.labels)
        STEPS.set(told.row["step"], self.labels)
        for name, value in told.row.items():
            kind, _, term = name.partition("/")
            if kind == "train":
                LOSS.set(value, self.labels | {"term": term})
            elif kind == "val":
                SCORE.set(value, self.labels | {"metric": term})
