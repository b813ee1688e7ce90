"""When a run validates, writes checkpoints and ends; and the learning-rate warm-up."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class TrainingConfig(BaseModel):
    """How long and how a stage trains; the same for all three stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: PositiveInt = 10
    steps_per_epoch: PositiveInt | None = Field(None, description="batches per epoch and rank; None: the whole loader")
    budget_s: PositiveFloat | None = Field(None, description="ends after the epoch in which this time has passed")
    seed: int = 0
    accumulate: PositiveInt = Field(1, description="batches whose gradients make up one optimiser step")
    recompute_activations: bool = Field(
        False, description="for large volumes: compute activations again in the backward pass instead of keeping them"
    )
    clip_norm: PositiveFloat | None = Field(5.0, description="largest gradient norm per optimiser; None: no clipping")
    warmup_steps: int = Field(0, ge=0, description="the learning rate grows linearly over this many batches")
    validate_every_epochs: PositiveInt = 1
    checkpoint_every_steps: PositiveInt | None = Field(None, description="also within an epoch; None: at its end only")
    keep_checkpoints: int = Field(3, ge=2, description="the one before the last serves when the last is damaged")
    progress_every_s: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _whole_updates(self) -> TrainingConfig:
        for name in ("checkpoint_every_steps", "steps_per_epoch"):
            if (getattr(self, name) or 0) % self.accumulate:
                raise ValueError(f"{name} must be a multiple of accumulate")
        return self


def validates(config: TrainingConfig, epoch: int) -> bool:
    """Whether the epoch (counted from 0) ends with a validation; the last one always does."""
    return (epoch + 1) % config.validate_every_epochs == 0 or epoch + 1 == config.epochs


def saves(config: TrainingConfig, step: int) -> bool:
    """Whether a checkpoint follows the step-th batch (counted from 1) of an epoch."""
    return config.checkpoint_every_steps is not None and step % config.checkpoint_every_steps == 0


def warmup_factor(config: TrainingConfig, step: int) -> float:
    """What to multiply the learning rates with at the run's step-th batch (counted from 0)."""
    return min(1.0, (step + 1) / (config.warmup_steps + 1))
