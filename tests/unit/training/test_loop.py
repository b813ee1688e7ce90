"""The loop: sample-exact resume, faults 77 and 80, selection, accumulation."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from toy_stage import ToyConfig, ToyStage

from hepalign.errors import BadInputError, HepalignError, WorkFailedError
from hepalign.stages.stage import Batch
from hepalign.training.checkpoint import stored_checkpoints
from hepalign.training.loop import FitResult, _Loop, fit, seed_everything
from hepalign.training.schedule import TrainingConfig
from hepalign.training.world import Report, World


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def toy(**settings: object) -> ToyStage:
    seed_everything(7)
    return ToyStage(ToyConfig.model_validate(settings))


def weights(stage: ToyStage) -> torch.Tensor:
    return torch.cat([value.flatten() for value in stage.net.state_dict().values()])


def run(stage: ToyStage, folder: Path, *, resume: bool = False, **training: object) -> FitResult:
    config = TrainingConfig.model_validate({"epochs": 3, "checkpoint_every_steps": 2, "seed": 3, **training})
    return fit(stage, config, World.local(), folder, resume=resume)


@pytest.mark.parametrize("killed_at", [1, 4, 5, 9, 12])
def test_resume_after_a_kill_equals_an_uninterrupted_run_bitwise(tmp_path: Path, killed_at: int) -> None:
    whole = toy()
    expected = run(whole, tmp_path / "whole")

    broken = toy()
    broken.before_batch = lambda number: _kill(number, killed_at)
    with pytest.raises(Killed):
        run(broken, tmp_path / "broken")
    resumed = toy()
    result = run(resumed, tmp_path / "broken", resume=True)

    assert torch.equal(weights(whole), weights(resumed))
    assert result.history == expected.history
    assert (tmp_path / "broken/best/toy.safetensors").read_bytes() == (
        tmp_path / "whole/best/toy.safetensors"
    ).read_bytes()


def test_a_different_seed_gives_other_losses(tmp_path: Path) -> None:
    first, second = run(toy(), tmp_path / "a"), run(toy(), tmp_path / "b", seed=4)
    assert first.history != second.history


def _kill(number: int, killed_at: int) -> None:
    if number == killed_at:
        raise Killed


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "digest"])
def test_fault_80_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toy()
    expected = run(whole, tmp_path / "whole")
    broken = toy()
    broken.before_batch = lambda number: _kill(number, 9)
    with pytest.raises(Killed):
        run(broken, tmp_path / "broken")
    newest = stored_checkpoints(tmp_path / "broken/checkpoints")[0]
    _damage(newest, damage)

    resumed = toy()
    assert run(resumed, tmp_path / "broken", resume=True).history == expected.history
    assert torch.equal(weights(whole), weights(resumed))
    told = capsys.readouterr().err
    assert f"warning: checkpoint {newest.name}" in told
    assert "the one before" in told


def _damage(folder: Path, how: str) -> None:
    common = folder / "common.pt"
    content = bytearray(common.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
        common.write_bytes(content)
    elif how == "truncate":
        common.write_bytes(content[: len(content) // 2])
    elif how == "remove":
        (folder / "rank-0.pt").unlink()
    else:
        (folder / "digests-0.json").write_text(json.dumps({"common.pt": "0" * 64}), encoding="utf-8")


def test_when_no_checkpoint_is_sound_resume_says_so(tmp_path: Path) -> None:
    run(toy(), tmp_path)
    for folder in stored_checkpoints(tmp_path / "checkpoints"):
        _damage(folder, "truncate")
    with pytest.raises(WorkFailedError, match="start anew") as caught:
        run(toy(), tmp_path, resume=True)
    assert caught.value.code == "checkpoint_corrupt"


def test_fault_77_nan_loss_names_the_cases_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    stage = toy(poisoned_case="case-3")
    with pytest.raises(WorkFailedError) as caught:
        run(stage, tmp_path, checkpoint_every_steps=1)
    assert caught.value.code == "loss_not_finite"
    assert "case-3" in caught.value.message
    assert "case-0" not in caught.value.message
    common = torch.load(stored_checkpoints(tmp_path / "checkpoints")[0] / "common.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in common["nets"]["toy"].values())


class Ranks:
    """Two ranks as threads, which meet in `gather` or give up."""

    def __init__(self) -> None:
        self.meeting = threading.Barrier(2, timeout=20)
        self.told: dict[int, object] = {}

    def world(self, rank: int) -> World:
        return dataclasses.replace(World.local(), rank=rank, size=2, gather=lambda mine: self._gather(rank, mine))

    def _gather(self, rank: int, mine: object) -> list[object]:
        self.told[rank] = mine
        self.meeting.wait()
        found = [self.told[0], self.told[1]]
        self.meeting.wait()
        return found


class LackingStage(ToyStage):
    """A stage that cannot read one batch of a split."""

    lacks: tuple[str, int] | None = None

    def loader(self, split: str, *, epoch: int, rank: int, world_size: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().loader(split, epoch=epoch, rank=rank, world_size=world_size)):
            if (split, number) == self.lacks:
                raise BadInputError("case-7 was changed", code="changed_file")
            yield batch


@pytest.mark.parametrize(
    ("lacks", "at_step"),
    [(("train", 1), 0), (("val", 0), 0), (("train", 0), 1)],
    ids=["a batch", "a validation batch", "a batch that a resumed run skips"],
)
def test_data_that_one_rank_cannot_read_ends_every_rank_with_its_words(
    tmp_path: Path, lacks: tuple[str, int], at_step: int
) -> None:
    ranks = Ranks()

    def work(rank: int) -> HepalignError | None:
        stage = LackingStage(ToyConfig())
        stage.lacks = lacks if rank == 1 else None
        training = _Loop(stage, TrainingConfig(epochs=1), ranks.world(rank), tmp_path / str(rank))
        training.at.step = training.at.batches = at_step
        try:
            training.run()
        except HepalignError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(work, (0, 1)))
    assert [(error.code, error.message) for error in ended if error] == [("changed_file", "case-7 was changed")] * 2


def test_the_best_validation_selects_the_weights(tmp_path: Path) -> None:
    stage = toy()
    stage.scripted_scores = [3.0, math.nan, 1.0, 2.0]
    result = run(stage, tmp_path, epochs=4)
    assert result.best_epoch == 2
    assert result.best["val/error"] == 1.0
    kept = torch.load(stored_checkpoints(tmp_path / "checkpoints")[0] / "common.pt", weights_only=True)
    assert kept["position"]["best_epoch"] == 2


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    run(toy(), tmp_path, keep_checkpoints=2, checkpoint_every_steps=1)
    assert [path.name for path in stored_checkpoints(tmp_path / "checkpoints")] == [
        "epoch-0003-batch-000000",
        "epoch-0002-batch-000004",
    ]


def test_accumulating_two_halves_equals_one_whole_batch(tmp_path: Path) -> None:
    halves, whole = toy(batch_size=1, cases=4, noise=0.0, memory=0.0), toy(batch_size=2, cases=4, noise=0.0, memory=0.0)
    run(halves, tmp_path / "halves", accumulate=2, epochs=2, clip_norm=None)
    run(whole, tmp_path / "whole", accumulate=1, epochs=2, clip_norm=None)
    torch.testing.assert_close(weights(halves), weights(whole))


def test_accumulating_ranks_average_their_gradients_once_a_step(tmp_path: Path) -> None:
    """DDP's reduction runs for the batch that ends a step, not for those before it."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    reductions: list[int] = []

    def prepared(net: torch.nn.Module) -> torch.nn.Module:
        wrapped = DistributedDataParallel(net)
        wrapped.register_comm_hook(None, lambda state, bucket: _counted(reductions, bucket))
        return wrapped

    try:
        world = dataclasses.replace(World.local(), prepare=prepared)
        stage = toy(cases=8, batch_size=1, noise=0.0, memory=0.0)
        fit(stage, TrainingConfig(epochs=1, accumulate=4, clip_norm=None, seed=3), world, tmp_path / "ddp")
    finally:
        torch.distributed.destroy_process_group()
    assert len(reductions) == 2
    alone = toy(cases=8, batch_size=1, noise=0.0, memory=0.0)
    fit(alone, TrainingConfig(epochs=1, accumulate=4, clip_norm=None, seed=3), World.local(), tmp_path / "alone")
    torch.testing.assert_close(weights(alone), torch.cat([p.detach().flatten() for p in stage.net.parameters()]))


def _counted(reductions: list[int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    reductions.append(bucket.index())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def test_fewer_batches_than_make_a_step_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError, match=r"training\.accumulate") as caught:
        run(toy(cases=4, batch_size=2), tmp_path, accumulate=3, checkpoint_every_steps=None)
    assert caught.value.code == "no_batches"
    with pytest.raises(ValueError, match="multiple of accumulate"):
        TrainingConfig(accumulate=3, steps_per_epoch=4)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    """Plain gradient descent with rate 1 moves by exactly the clipped norm."""
    stage = toy(learning_rate=1.0, cases=1, batch_size=1)
    before = weights(stage).clone()
    run(stage, tmp_path, epochs=1, clip_norm=0.01)
    torch.testing.assert_close((weights(stage) - before).norm(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_warm_up_scales_the_rate_and_leaves_it_whole(tmp_path: Path) -> None:
    stage = toy(learning_rate=0.4)
    seen: list[float] = []
    stage.before_batch = lambda number: seen.append(stage.optimizer.param_groups[0]["lr"])
    run(stage, tmp_path, epochs=1, warmup_steps=3)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert stage.optimizer.param_groups[0]["lr"] == 0.4


def test_a_time_budget_ends_after_the_epoch(tmp_path: Path) -> None:
    assert run(toy(), tmp_path, budget_s=1e-9 + 0.02, epochs=10_000).epochs < 10_000


def test_an_empty_loader_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError, match=r"data\.cohorts"):
        run(toy(cases=0), tmp_path)


def test_every_epoch_is_reported_with_a_checkpoint(tmp_path: Path) -> None:
    reports: list[Report] = []
    config = TrainingConfig(epochs=2)
    fit(toy(), config, World.local(report=reports.append), tmp_path)
    assert [report.row["epoch"] for report in reports] == [0.0, 1.0]
    assert all(report.checkpoint is not None for report in reports)
    assert {"step", "train/loss", "train/squared", "train/grad_norm/toy", "val/error", "lr/toy"} <= set(reports[0].row)
    assert list(reports[0].pictures) == ["fit"]
