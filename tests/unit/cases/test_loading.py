from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from refusing_samples import RefusingSamples

from hepalign.cases.loading import EpochLoader, Sample, epoch_order
from hepalign.errors import BadInputError


class Numbers:
    """Samples that tell their number and their chance."""

    def __init__(self, count: int, bad: int = -1) -> None:
        self.count, self.bad = count, bad
        self.made = 0

    def __len__(self) -> int:
        return self.count

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        if index == self.bad:
            raise BadInputError("bad case", code="changed_file")
        self.made += 1
        return {"n": torch.tensor(index), "chance": torch.tensor(rng.random()), "case_id": f"c{index}"}


def loader(maker: Numbers, split: str = "train", **words: int) -> EpochLoader:
    given = {"batch_size": 2, "workers": 0, "seed": 3, "epoch": 0, "rank": 0, "world_size": 1} | words
    return EpochLoader(maker, split, **given)  # type: ignore[arg-type]


def told(batches: Iterator[dict[str, object]]) -> list[tuple[int, float]]:
    return [
        (int(n), float(c))
        for batch in batches
        for n, c in zip(batch["n"], batch["chance"], strict=True)  # type: ignore[call-overload]
    ]


def test_the_same_seed_and_epoch_give_the_same_samples() -> None:
    first = told(iter(loader(Numbers(7))))
    assert told(iter(loader(Numbers(7)))) == first
    assert told(iter(loader(Numbers(7), epoch=1))) != first
    assert told(iter(loader(Numbers(7), seed=4))) != first


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    told(iter(loader(Numbers(7))))
    assert torch.equal(torch.rand(3), expected)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_epoch_evenly(world_size: int) -> None:
    ranks = [told(iter(loader(Numbers(10), rank=rank, world_size=world_size))) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert {n for rank in ranks for n, _ in rank} == set(range(10))
    one_rank = dict(told(iter(loader(Numbers(10)))))
    # the first occurrence of a sample is the same whoever makes it
    seen = dict(reversed([pair for step in zip(*ranks, strict=True) for pair in step]))
    assert seen == one_rank


def test_a_repeated_sample_is_not_the_same_sample() -> None:
    samples = told(iter(loader(Numbers(3), batch_size=2)))
    assert len(samples) == 4
    assert len({chance for _, chance in samples}) == 4


def test_validation_is_in_order_once_and_the_same_every_epoch() -> None:
    first = told(iter(loader(Numbers(5), "val")))
    assert [n for n, _ in first] == [0, 1, 2, 3, 4]
    assert told(iter(loader(Numbers(5), "val", epoch=9))) == first
    parts = [told(iter(loader(Numbers(5), "val", rank=rank, world_size=2))) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == first


def test_batches_are_stacked_and_words_listed() -> None:
    batch = next(iter(loader(Numbers(4), "val")))
    assert batch["n"].tolist() == [0, 1]  # type: ignore[attr-defined]
    assert batch["case_id"] == ["c0", "c1"]
    assert len(loader(Numbers(5), "val")) == 3


def test_an_error_reaches_the_consumer() -> None:
    batches = iter(loader(Numbers(6, bad=4), "val"))
    next(batches)
    next(batches)
    with pytest.raises(BadInputError, match="bad case"):
        next(batches)


def test_an_error_in_a_process_keeps_its_code() -> None:
    batches = iter(loader(RefusingSamples(), "val", workers=1))  # type: ignore[arg-type]
    assert next(batches)["n"].tolist() == [0, 1]  # type: ignore[attr-defined]
    with pytest.raises(BadInputError, match=r"^bad case$") as caught:
        next(batches)
    assert caught.value.code == "changed_file"


def test_a_consumer_that_stops_ends_the_thread() -> None:
    maker = Numbers(1000)
    batches = iter(loader(maker, "val"))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "hepalign-batches"]
    assert maker.made < 20


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(BadInputError, match="'val'") as error:
        loader(Numbers(0), "val")
    assert error.value.code == "no_cases"


def test_every_sample_is_in_an_epoch() -> None:
    order = epoch_order(7, "train", (0, 0), 3, 0, 1)
    assert sorted(n for n, again in order if again == 0) == list(range(7))
    assert len(order) == 9
