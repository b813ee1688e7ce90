"""The CycleGAN's losses, steps, rates, state and scores."""

from __future__ import annotations

import pytest
import stage_gradients as helper
import torch
from pydantic import ValidationError

from hepalign.nets.checkpoint import load_weights, save_weights
from hepalign.stages.synthesis import SynthesisConfig, SynthesisLosses, SynthesisStage, edge_drift


def test_weights_are_cyclegans() -> None:
    weights = SynthesisLosses()
    assert (weights.cycle, weights.identity) == (10.0, 0.5)
    with pytest.raises(ValidationError):
        SynthesisConfig.model_validate({"losses": {"cylce": 3}})


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    update = next(helper.synthesis_stage().updates(helper.synthesis_batch()))
    terms = {name: float(term) for name, term in update.terms.items()}
    expected = terms["adversarial_ct"] + terms["adversarial_mr"] + 10 * terms["cycle"] + 5 * terms["identity"]
    assert update.loss.item() == pytest.approx(expected - terms["mutual_information"], rel=1e-5)


def test_optional_terms_count_and_pairs_only_where_they_are_known() -> None:
    batch = helper.synthesis_batch()
    batch |= {"true_ct": batch["ct"].flip(2), "has_true_ct": torch.tensor([False, True])}
    losses = SynthesisLosses(identity=0, structure=3, paired=7)
    config = helper.synthesis_stage().config.model_copy(update={"losses": losses})
    stage = SynthesisStage(config, [], torch.device("cpu"))
    update = next(stage.updates(batch))
    terms = {name: float(term) for name, term in update.terms.items()}
    assert "identity" not in terms
    expected = terms["adversarial_ct"] + terms["adversarial_mr"] + 10 * terms["cycle"] - terms["mutual_information"]
    assert update.loss.item() == pytest.approx(expected + 3 * terms["structure"] + 7 * terms["paired"], rel=1e-5)
    fake = stage.nets()["to_ct"](batch["mr"][1:])
    known = (fake - batch["true_ct"][1:]).detach().abs().mean() / 2
    assert terms["paired"] == pytest.approx(float(known), rel=2e-2)


def test_pairs_alone_come_first_where_that_is_wished() -> None:
    config = helper.synthesis_stage().config
    optimizer = config.optimizer.model_copy(update={"paired_first": 0.5})
    changed = {"optimizer": optimizer, "losses": SynthesisLosses(paired=7)}
    stage = SynthesisStage(config.model_copy(update=changed), [], torch.device("cpu"))
    batch = helper.synthesis_batch()
    batch |= {"true_ct": batch["ct"], "has_true_ct": torch.tensor([True, True])}
    updates = []
    for epoch in (0, 1):
        stage.begin_epoch(epoch, 2)
        updates.append([set(update.terms) for update in stage.updates(batch)])
    assert updates[0] == [{"paired"}]
    assert len(updates[1]) == 2
    assert "paired" in updates[1][0]
    assert "adversarial_ct" in updates[1][0]


def test_information_is_maximised() -> None:
    # Only the information counts here: a step along its gradient must raise it.
    config = helper.synthesis_stage().config
    losses = SynthesisLosses(cycle=0, mutual_information=1e4, voxels=10**6)
    stage = SynthesisStage(config.model_copy(update={"losses": losses}), [], torch.device("cpu"))
    batch = helper.synthesis_batch()
    before = float(next(stage.updates(batch)).terms["mutual_information"])
    for _ in range(5):
        update = next(stage.updates(batch))
        update.optimizer.zero_grad()
        update.loss.backward()
        for group in update.optimizer.param_groups:
            group["lr"] = 1e-2
        update.optimizer.step()
    assert float(next(stage.updates(batch)).terms["mutual_information"]) > 1.1 * before


def test_each_step_moves_its_own_networks_only() -> None:
    stage = helper.synthesis_stage()
    owners = {"generators": {"to_ct", "to_mr"}, "discriminators": {"judge_ct", "judge_mr"}}
    names = {id(optimizer): name for name, optimizer in stage.optimizers().items()}
    order = []
    for update in stage.updates(helper.synthesis_batch()):
        before = {name: [p.clone() for p in net.parameters()] for name, net in stage.nets().items()}
        update.optimizer.zero_grad()
        update.loss.backward()
        update.optimizer.step()
        moved = {
            name
            for name, net in stage.nets().items()
            if any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))
        }
        order.append(names[id(update.optimizer)])
        assert moved == owners[order[-1]]
    assert order == ["generators", "discriminators"]


def test_rates_stay_and_then_fall_to_zero() -> None:
    stage = helper.synthesis_stage()
    rates = []
    for epoch in range(10):
        stage.begin_epoch(epoch, 10)
        rates.append(stage.optimizers()["generators"].param_groups[0]["lr"] / 2e-4)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_same_seed_gives_the_same_losses_and_a_restored_state_the_same_next_ones() -> None:
    def step(stage: SynthesisStage) -> list[float]:
        losses = []
        for update in stage.updates(helper.synthesis_batch()):
            update.optimizer.zero_grad()
            update.loss.backward()
            update.optimizer.step()
            losses.append(update.loss.item())
        return losses

    def buffered() -> SynthesisStage:
        config = helper.synthesis_stage().config
        changed = {"buffer": 2, "losses": SynthesisLosses(voxels=500)}
        return SynthesisStage(config.model_copy(update=changed), [], torch.device("cpu"))

    first, second = buffered(), buffered()
    assert [step(first) for _ in range(3)] == [step(second) for _ in range(3)]
    third = buffered()
    for name, net in third.nets().items():
        net.load_state_dict(first.nets()[name].state_dict())
    for name, optimizer in third.optimizers().items():
        optimizer.load_state_dict(first.optimizers()[name].state_dict())
    third.load_state(first.state())
    assert step(third) == step(first)


def test_scores_are_hu_errors_in_the_body_and_know_no_weights() -> None:
    batch = helper.synthesis_batch()
    batch["true_ct"], batch["body"] = batch["ct"], (batch["ct"] > 0).float()
    stage = helper.synthesis_stage()
    scores = stage.score(batch)
    other = SynthesisStage(
        stage.config.model_copy(update={"losses": SynthesisLosses(cycle=1, mutual_information=9)}),
        [],
        torch.device("cpu"),
    )
    assert other.score(batch) == scores
    fake = stage._synthesise(batch["mr"])
    expected = 1000 * ((fake - batch["ct"]).abs() * batch["body"]).sum() / batch["body"].sum()
    assert scores["mae_hu"] == pytest.approx(float(expected), rel=1e-5)
    assert stage.selection == ("edge_drift", True), "no case with a true CT: the choice falls to edges"


def test_edge_drift_is_zero_for_any_contrast_and_grows_with_a_shift() -> None:
    axis = torch.linspace(-2, 2, 24)
    i, j, k = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = torch.tanh(4 * (1 - (i**2 + j**2 + k**2).sqrt()))[None, None]
    assert edge_drift(ball, -0.5 * ball) < 0.02
    drifts = [edge_drift(ball, ball.roll(shift, 2)) for shift in (0, 2, 4)]
    assert drifts[0] < drifts[1] < drifts[2]


def test_pictures_and_export(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stage = helper.synthesis_stage()
    (picture,) = stage.pictures(helper.synthesis_batch()).values()
    assert picture.ndim == 2
    assert picture.dtype.name == "uint8"
    net, config = stage.export()
    digest = save_weights(net, config, tmp_path, "synthesis")
    assert load_weights(tmp_path, "synthesis", digest).config.patch == stage.config.data.patch


def test_the_released_generator_is_the_mean_over_the_last_steps() -> None:
    stage = helper.synthesis_stage()
    seen = []
    for _ in range(3):
        for update in stage.updates(helper.synthesis_batch()):
            update.optimizer.zero_grad()
            update.loss.backward()
            update.optimizer.step()
        seen.append([parameter.detach().clone() for parameter in stage.nets()["to_ct"].parameters()])
    net, _ = stage.export()
    # shares 1, 1/2, 1/3: the first steps' plain mean
    for mean, values in zip(net.parameters(), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(mean, torch.stack(values).mean(0))
