"""Samples to batches: the order of an epoch, the generators, and the thread or processes that read ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hepalign.cases.case import Split
from hepalign.errors import BadInputError, HepalignError

Sample = dict[str, Tensor | str]
Batch = dict[str, object]

# How many batches the thread holds ready: one being taken, one behind it.
AHEAD = 2


class SampleMaker(Protocol):
    """Makes sample number `index` of an epoch; all its chance comes from `rng`."""

    def __len__(self) -> int: ...

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample, channels first."""
        ...


class EpochLoader:
    """The batches of one epoch for one rank; iterating again gives the same batches again.

    Sample n of an epoch depends only on (seed, epoch, n): neither the number of workers nor of ranks changes it.
    In training the order is shuffled and the ranks get equally many full batches (the first samples are repeated to
    fill the last ones); in validation every sample is given once, in order, and is the same in every epoch.

    Args:
        maker: makes the samples.
        split: `train` shuffles and repeats.
        batch_size: samples a batch.
        workers: processes that read ahead; 0 is one thread.
        seed: of the run.
        epoch: from 0.
        rank: of `world_size`.
        world_size: number of ranks.

    Raises:
        BadInputError: `no_cases` where there is no sample at all.
    """

    def __init__(
        self,
        maker: SampleMaker,
        split: Split,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
    ) -> None:
        if not len(maker):
            raise BadInputError(
                f"no case of the split '{split}' has the images this stage needs; check the cohorts and their splits",
                code="no_cases",
            )
        epoch = epoch if split == "train" else 0
        order = epoch_order(len(maker), split, (seed, epoch), batch_size, rank, world_size)
        self._samples = _EpochSamples(maker, order, (seed, epoch, int(split == "train")))
        self._batches = [list(range(n, min(n + batch_size, len(order)))) for n in range(0, len(order), batch_size)]
        self._workers = workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._workers == 0:
            return _read_ahead(collate([self._samples[n] for n in batch]) for batch in self._batches)
        # fork would copy torch's threads in an unknown state
        return _raising(
            DataLoader(
                _Returning(self._samples),
                batch_sampler=self._batches,
                num_workers=self._workers,
                collate_fn=_collate_sound,
                multiprocessing_context="forkserver",
            )
        )


def epoch_order(
    samples: int, split: Split, seeds: tuple[int, int], batch_size: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """Which samples a rank gets, in order: (sample, how often it stood before in this epoch)."""
    if split != "train":
        return [(n, 0) for n in range(rank, samples, world_size)]
    order = np.random.default_rng(seeds).permutation(samples)
    whole = batch_size * world_size
    total = -(-samples // whole) * whole
    return [(int(order[n % samples]), n // samples) for n in range(rank, total, world_size)]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the tensors of samples along a new first axis; words become lists."""
    batch: Batch = {}
    for key, value in samples[0].items():
        if isinstance(value, Tensor):
            batch[key] = torch.stack([sample[key] for sample in samples])  # type: ignore[misc]
        else:
            batch[key] = [sample[key] for sample in samples]
    return batch


class _EpochSamples(Dataset[Sample]):
    def __init__(self, maker: SampleMaker, order: list[tuple[int, int]], seeds: tuple[int, ...]) -> None:
        self._maker, self._order, self._seeds = maker, order, seeds

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Sample:
        index, again = self._order[position]
        return self._maker.make(index, np.random.default_rng((*self._seeds, index, again)))


class _Returning(Dataset[Sample | HepalignError]):
    """The same samples, and our errors in their place: torch raises a process's error anew, without its code."""

    def __init__(self, samples: _EpochSamples) -> None:
        self._samples = samples

    def __getitem__(self, position: int) -> Sample | HepalignError:
        try:
            return self._samples[position]
        except HepalignError as error:
            return error


def _collate_sound(samples: Sequence[Sample | HepalignError]) -> Batch | HepalignError:
    failed = [sample for sample in samples if isinstance(sample, HepalignError)]
    return failed[0] if failed else collate(cast("Sequence[Sample]", samples))


def _raising(batches: Iterable[Batch | HepalignError]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, HepalignError):
            raise batch
        yield batch


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made by a thread while the last ones are used; it ends with the consumer."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=AHEAD)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer raises it
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=work, name="hepalign-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
