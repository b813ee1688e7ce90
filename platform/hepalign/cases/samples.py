"""What the three stages' samples have in common: settings, the files behind a sample, and the way to a loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from hepalign.cases.case import Case, Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.loading import EpochLoader, SampleMaker
from hepalign.cases.prepared import Arrays, prepared, prepared_key
from hepalign.image.volume import Volume


class StageData(BaseModel):
    """What every stage reads.

    Attributes:
        cohorts: folders or s3:// prefixes.
        spacing_mm: isotropic spacing at which images are read.
        batch_size: samples a batch.
        workers: processes that read ahead (0: one thread).
    """

    model_config = ConfigDict(extra="forbid")

    cohorts: list[str] = []
    spacing_mm: float = Field(default=2.0, gt=0)
    batch_size: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)


DataT = TypeVar("DataT", bound=StageData)
DataT_contra = TypeVar("DataT_contra", bound=StageData, contravariant=True)


@dataclass(frozen=True)
class Source:
    """The case that a sample is made of."""

    cohort: Cohort
    case: Case

    def volume(self, name: str) -> Volume:
        """One of its images, masks or label maps."""
        return self.cohort.volume(self.case, name)

    def prepared(self, names: Sequence[str], recipe: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
        """What a recipe makes of these files of the case: made once, then read from the cache."""
        digests = [self.cohort.entry(self.case, name).sha256 for name in names]
        return prepared(prepared_key(digests, recipe), make)


class Loader(Protocol[DataT_contra]):
    """Gives the batches of one epoch for one rank; errors as `EpochLoader`."""

    def __call__(
        self,
        cohorts: Sequence[Cohort],
        config: DataT_contra,
        split: Split,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> EpochLoader:
        """The loader of this rank's share of the epoch."""
        ...


def loader_of(samples: Callable[[Sequence[Cohort], DataT, Split], SampleMaker]) -> Loader[DataT]:
    """A stage's loader from what makes its samples."""

    def loader(
        cohorts: Sequence[Cohort],
        config: DataT,
        split: Split,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> EpochLoader:
        return EpochLoader(
            samples(cohorts, config, split),
            split,
            batch_size=config.batch_size,
            workers=config.workers,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    return loader
